#!/usr/bin/env python3
"""Time of the same step as `sft` against a plain loop of transformers and PEFT (with --compile: also under torch.compile).

The ratio is the peer's median step over ours, both in bf16. Also printed: the peer in f32, ours in f32, and the peer in both
dtypes with an allocator that keeps its memory.
"""

import _harness as harness
import _sft
from levain_setup.say import Problem, say

# glibc gives large blocks back to the system at once; kept, they need not be filled with zeros again.
KEPT = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "268435456"}


def main() -> None:
    """Both dtypes, the tuned forms, the floor."""
    options = harness.options(__doc__, steps=1, compile="also under torch.compile: minutes more")
    say(f"sft-plain on {harness.machine()}")
    training = _sft.Training(options.steps, options.quick)
    try:
        ours, theirs = training.compare("plain", "plain loop", "bf16", options.rounds)
        ours32, theirs32 = training.compare("plain", "plain loop", "f32", options.rounds)
        forms = {"bf16": [theirs], "f32": [theirs32]}
        for dtype, own in (("bf16", ours), ("f32", ours32)):
            if not options.quick:
                forms[dtype].append(form(training, dtype, "kept memory", own, **KEPT))
            if options.compile:
                forms[dtype].append(form(training, dtype, "torch.compile", own, compiled=True))
                forms[dtype].append(form(training, dtype, "torch.compile, kept memory", own, compiled=True, **KEPT))
        fastest = {dtype: min(side.step for side in sides if side) for dtype, sides in forms.items()}
        training.floor(**{
            "ours in bf16": ours.step, "ours in f32": ours32.step, "the peer's fastest form in bf16": fastest["bf16"],
            "the peer's fastest form in f32": fastest["f32"],
        })  # fmt: skip
    finally:
        training.close()
    say(f"against the peer's fastest form in bf16: ratio {fastest['bf16'] / ours.step:.2f}")
    say(f"against the peer in f32: ratio {theirs32.step / ours.step:.2f}; in its fastest form {fastest['f32'] / ours.step:.2f}")
    say(f"both in f32: ratio {theirs32.step / ours32.step:.2f}; the peer in its fastest form {fastest['f32'] / ours32.step:.2f}")
    say(f"sft-plain ratio {theirs.step / ours.step:.2f}")


def form(training: _sft.Training, dtype: str, name: str, ours: _sft.Side, **how: object) -> "_sft.Side | None":
    """Another form of the peer, once; nothing where it does not run here, for a compiler may be missing."""
    side = _sft.Side(training.tokens)
    try:
        training.peer("plain", dtype, side, **how)
    except harness.Unequal:
        raise
    except Problem as problem:
        say(f"also: plain loop, {dtype}, {name}: skipped, it does not run here ({problem.why.splitlines()[-1] if problem.why else problem.what})")
        return None
    harness.near(ours.losses, side.losses, _sft.TOLERANCE[dtype], f"{dtype}, {name}: loss of step")
    say(f"also: plain loop, {dtype}, {name}: {side.text()}")
    return side


if __name__ == "__main__":
    harness.run(main)
