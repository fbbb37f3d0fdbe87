#!/usr/bin/env python3
"""Time of a LoRA training step of SmolLM2-135M (4 x 512 tokens, bf16) against TRL's SFTTrainer.

The ratio is the peer's median step over ours, both in bf16. Also printed: the peer in f32, which is its fastest form on a
processor without bf16 products, and ours in f32; with --autocast, TRL's default autocast. Its weights are otherwise in
bf16 and its adapter in f32, as ours are.
"""

import _harness as harness
import _sft
from levain_setup.say import say


def main() -> None:
    """Both dtypes, then the floor."""
    options = harness.options(__doc__, steps=1, autocast="also TRL in bf16 with its default autocast, once")
    say(f"sft on {harness.machine()}")
    training = _sft.Training(options.steps, options.quick)
    try:
        ours, theirs = training.compare("trl", "TRL", "bf16", options.rounds)
        ours32, theirs32 = training.compare("trl", "TRL", "f32", options.rounds)
        if options.autocast:
            autocast = _sft.Side(training.tokens)
            training.peer("trl", "bf16", autocast, autocast=True)
            say(f"also: TRL in bf16 with its default autocast: {autocast.text()}")
        training.floor(**{"ours in bf16": ours.step, "ours in f32": ours32.step, "TRL in f32": theirs32.step})
    finally:
        training.close()
    say(f"against the peer in f32: ratio {theirs32.step / ours.step:.2f}")
    say(f"both in f32: ratio {theirs32.step / ours32.step:.2f}")
    say(f"sft ratio {theirs.step / ours.step:.2f}")


if __name__ == "__main__":
    harness.run(main)
