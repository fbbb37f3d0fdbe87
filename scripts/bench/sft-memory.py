#!/usr/bin/env python3
"""Peak resident memory of the same training as `sft` against TRL's SFTTrainer.

The ratio is the peer's peak over ours, both in bf16: for ours of the larger of `levain` and its worker, for TRL of its
process. Also printed: both in f32.
"""

import _harness as harness
import _sft
from levain_setup.say import say


def main() -> None:
    """Both dtypes; the peak hardly varies, its median is taken all the same."""
    options = harness.options(__doc__, steps=1)
    say(f"sft-memory on {harness.machine()}")
    training = _sft.Training(options.steps, options.quick)
    peaks = {}
    try:
        for dtype in ("bf16", "f32"):
            ours, theirs = training.compare("trl", "TRL", dtype, options.rounds)
            peaks[dtype] = harness.median(ours.memory), harness.median(theirs.memory)
    finally:
        training.close()
    weights = sum(file.stat().st_size for file in training.model.glob("*.safetensors"))
    say(f"floor: the weights alone are {weights / 1e9:.2f} GB in bf16 and {2 * weights / 1e9:.2f} GB in f32")
    for dtype, (ours, theirs) in peaks.items():
        say(f"{dtype}  ours {ours / 1e9:.2f} GB, TRL {theirs / 1e9:.2f} GB: ratio {theirs / ours:.2f}")
    say(f"against the peer in f32: ratio {peaks['f32'][1] / peaks['bf16'][0]:.2f}")
    say(f"sft-memory ratio {peaks['bf16'][1] / peaks['bf16'][0]:.2f}")


if __name__ == "__main__":
    harness.run(main)
