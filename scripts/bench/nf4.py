#!/usr/bin/env python3
"""Quantizing a weight of 11008 x 4096 to NF4, and forward and backward of its layer at 512 tokens, against bitsandbytes 0.50.

Double quantization, blocks of 64 values, everything in bf16; the backward pass gives the gradient to the input only. The
ratio is the smaller of two: bitsandbytes' time over ours for quantizing, from bf16 numbers to codes, and for both passes.
Also printed: the peak memory of the passes, torch's own layer with the weight in full precision, bitsandbytes with an
allocator that keeps its memory (as ours does), and the passes of both in f32.

What is timed has a gradient of ones to the output, which costs nothing to make; what is compared besides has a random one.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import _harness as harness
from _floor import rates
from levain_setup import places, programs
from levain_setup.say import FAILED, Problem, say

PEER_DTYPE = {"bf16": "bfloat16", "f32": "float32"}
TOLERANCE = {"bf16": 0.02, "f32": 0.01}
"""How far results may be apart. In f32 the peer's backward pass rounds the weight to bf16, and its forward pass does not."""

# glibc gives large blocks back to the system at once; kept, they need not be filled with zeros again.
KEPT = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "268435456"}
PEER = "bitsandbytes"
FORMS = {PEER: {}, f"{PEER}, kept memory": KEPT}
"""The peer's forms, and what is in their environment."""

SEED = 17


@dataclass
class Side:
    """What was measured of one side: all rounds together."""

    quantize: list[float] = field(default_factory=list)
    """Seconds."""

    passes: list[float] = field(default_factory=list)
    """Seconds of forward and backward."""

    dense: list[float] = field(default_factory=list)
    """The same of torch's own layer."""

    peaks: list[int] = field(default_factory=list)
    """The most bytes that were resident in the passes."""

    added: list[int] = field(default_factory=list)
    """What of it was not there before them."""

    def take(self, answer: dict) -> None:
        """Add a process's answer."""
        self.quantize += answer["quantize"]
        self.passes += answer["passes"]
        self.dense += answer.get("dense", [])
        if answer["peak"] is not None and answer["before"] is not None:
            self.peaks.append(answer["peak"])
            self.added.append(max(answer["peak"] - answer["before"], 0))

    def memory(self) -> str:
        """A few words about it."""
        if not self.peaks:
            return "peak not counted by this system"
        return f"peak {harness.median(self.peaks) / 1e6:.0f} MB, {harness.median(self.added) / 1e6:.0f} MB more than before"


def example() -> str:
    """The program of ours that is measured; built as the tests are, so that nothing is compiled twice."""
    command = [*programs.cargo(), "build", "--release", "--workspace", "--example", "nf4_layer"]
    if subprocess.run(command, cwd=places.CHECKOUT).returncode != 0:
        raise Problem(FAILED, "the build failed", why="see above")
    return str(programs.target_folder() / "release" / "examples" / "nf4_layer")


class Layer:
    """The same numbers on both sides."""

    def __init__(self, quick: bool) -> None:
        self.python = harness.PEERS.prepare()
        self.program = example()
        self.out, self.inner, self.rows = (2752, 1024, 64) if quick else (11008, 4096, 512)
        self.quantizations, self.passes = (1, 1) if quick else (3, 7)
        self.folder = tempfile.TemporaryDirectory(prefix="levain-bench-nf4-")
        self.inputs, self.outputs = (str(Path(self.folder.name) / f"{name}.safetensors") for name in ("inputs", "ours"))
        job = {"write": True, "seed": SEED, "shape": [self.out, self.inner, self.rows], "inputs": self.inputs}
        harness.peer(self.python, "_peer_nf4.py", job)

    @property
    def parameters(self) -> int:
        """Of the weight."""
        return self.out * self.inner

    def ours(self, dtype: str, quantizations: int, side: Side) -> None:
        """One process of ours."""
        threads = str(harness.THREADS)
        around = dict(os.environ, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
        command = [self.program, self.inputs, self.outputs, dtype, threads, str(quantizations), str(self.passes)]
        side.take(json.loads(harness.measured(command, around)[0].splitlines()[-1]))

    def peer(self, dtype: str, quantizations: int, side: Side, **environment: str) -> dict:
        """One process of the peer's, and the proof that it made what ours made."""
        job = {
            "write": False, "inputs": self.inputs, "ours": self.outputs, "dtype": PEER_DTYPE[dtype],
            "quantizations": quantizations, "passes": self.passes,
        }  # fmt: skip
        answer, _ = harness.peer(self.python, "_peer_nf4.py", job, **environment)
        if answer["codes"] != 0:
            harness.different(f"{answer['codes']} of {self.parameters // 2} bytes of codes are others")
        for name, apart in answer["apart"].items():
            if not apart <= TOLERANCE[dtype]:
                harness.different(f"{dtype}: {name} is {apart:.2%} from the peer's")
        side.take(answer)
        return answer

    def compare(self, dtype: str, rounds: int) -> tuple[Side, dict[str, Side]]:
        """Rounds of both sides alternately (in f32 one, of the passes alone); what every round made is compared."""
        ours, forms, answer = Side(), {name: Side() for name in FORMS}, {}
        quantizations = self.quantizations if dtype == "bf16" else 0
        for number in range(rounds if dtype == "bf16" else 1):
            self.ours(dtype, quantizations, ours)
            for name, side in forms.items():
                answer = self.peer(dtype, quantizations, side, **FORMS[name])
            last = ", ".join(f"{name} {side.passes[-1] * 1000:.0f} ms" for name, side in {"ours": ours, **forms}.items())
            say(f"  round {number + 1}, {dtype}, both passes: {last}")
        for name, side in {"ours": ours, **forms}.items():
            say(f"{dtype}  {name}: {self.text(side)}")
        apart = ", ".join(f"{name} {value:.2%}" for name, value in answer["apart"].items())
        say(f"{dtype}  equal work: {self.parameters // 2} bytes of codes are the same, {answer['scales']} of {self.parameters // 64} codes of scales "
            f"are others; apart, relative: {apart}")  # fmt: skip
        return ours, forms

    def text(self, side: Side) -> str:
        """A line's worth of it."""
        speeds = [self.parameters / seconds / 1e6 for seconds in side.quantize]
        quantize = f"quantize {harness.spread(speeds, 'million parameters/s')}; " if speeds else ""
        dense = f"; torch's dense layer {harness.spread(thousandths(side.dense), 'ms')}" if side.dense else ""
        return f"{quantize}forward and backward {harness.spread(thousandths(side.passes), 'ms')}, {side.memory()}{dense}"

    def floor(self, sides: dict[str, Side]) -> None:
        """What reading, writing and multiplying alone take."""
        found = rates(self.python)
        # Two bytes of a number are read; half a byte of its code and its part of a scale's code are written.
        moved = self.parameters * (2 + 0.5 + 1 / 64)
        best = max(found["f32"], found["bf16"])
        # Both passes multiply each token with each number.
        count = 2 * 2.0 * self.rows * self.parameters
        quantize, passes = moved / found["bytes"], count / best
        say(f"floor: quantizing moves {moved / 1e6:.0f} MB: {quantize * 1000:.1f} ms at {found['bytes'] / 1e9:.1f} GB/s; both passes are "
            f"{count / 1e9:.1f} GFLOP: {passes * 1000:.1f} ms at the better of {found['f32'] / 1e9:.0f} GFLOP/s in f32 and "
            f"{found['bf16'] / 1e9:.1f} in bf16; the packed weight is {self.parameters * (0.5 + 1 / 64) / 1e6:.1f} MB")  # fmt: skip
        for name, side in sides.items():
            reached = f"{quantize / harness.median(side.quantize):.0%} of it in quantizing, " if side.quantize else ""
            say(f"floor: {name} reaches {reached}{passes / harness.median(side.passes):.0%} in both passes")


def thousandths(seconds: list[float]) -> list[float]:
    """As milliseconds."""
    return [1000 * value for value in seconds]


def ratio(theirs: list[float], ours: list[float]) -> float:
    """The peer's median over ours."""
    return harness.median(theirs) / max(harness.median(ours), 1e-9)


def fastest(forms: dict[str, Side], what: str) -> list[float]:
    """The seconds of the peer's form that is the fastest in this."""
    return min((getattr(side, what) for side in forms.values()), key=harness.median)


def main() -> None:
    """Both dtypes, then the floor."""
    options = harness.options(__doc__)
    say(f"nf4 on {harness.machine()}")
    layer = Layer(options.quick)
    try:
        ours, forms = layer.compare("bf16", options.rounds)
        ours32, forms32 = layer.compare("f32", options.rounds)
        theirs, theirs32 = forms[PEER], forms32[PEER]
        layer.floor({"ours in bf16": ours, f"{PEER} in bf16": theirs, "ours in f32": ours32, f"{PEER} in f32": theirs32})
    finally:
        layer.folder.cleanup()
    if ours.peaks and theirs.peaks:
        say(f"memory of both passes in bf16: ratio {ratio(theirs.peaks, ours.peaks):.2f}; of what they add: ratio {ratio(theirs.added, ours.added):.2f}")
    say(f"both passes against torch's dense layer in bf16: ratio {ratio(theirs.dense, ours.passes):.2f}")
    say(f"against the peer's fastest form in bf16: quantize ratio {ratio(fastest(forms, 'quantize'), ours.quantize):.2f}, both passes ratio "
        f"{ratio(fastest(forms, 'passes'), ours.passes):.2f}")  # fmt: skip
    say(f"both passes against the peer in f32: ratio {ratio(theirs32.passes, ours.passes):.2f}; in its fastest form "
        f"{ratio(fastest(forms32, 'passes'), ours.passes):.2f}")  # fmt: skip
    say(f"both passes, both in f32: ratio {ratio(theirs32.passes, ours32.passes):.2f}; the peer in its fastest form "
        f"{ratio(fastest(forms32, 'passes'), ours32.passes):.2f}")  # fmt: skip
    quantize, passes = ratio(theirs.quantize, ours.quantize), ratio(theirs.passes, ours.passes)
    say(f"quantize: ratio {quantize:.2f}")
    say(f"forward and backward: ratio {passes:.2f}")
    say(f"nf4 ratio {min(quantize, passes):.2f}")


if __name__ == "__main__":
    harness.run(main)
