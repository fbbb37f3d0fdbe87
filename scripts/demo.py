#!/usr/bin/env python3
"""`make demo`: all set-up, and the quickstart recipe, with everything that can happen at once happening at once.

While libtorch is fetched, what needs no libtorch is compiled. As soon as libtorch is there, everything is; as soon as
`levain` is there, it fetches the model and the data; then the recipe runs. The feature `early` of the root package
makes the first compilation ask of shared crates what the second will ask, so that none is compiled twice.
Exit codes: those of setup.py, of cargo's failure (1), and of `levain run`.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from levain_setup import places, programs, store, wheels
from levain_setup.say import FAILED, INTERRUPTED, Problem, duration, say, size, stop

RECIPE = "recipes/quickstart.yaml"

# Measured on 2 cores; only for the forecast that is printed first.
MODEL_BYTES = 93_000_000
DATA_BYTES = 5_200_000
COMPILE_MINUTES = 10.0
RUN_MINUTES = 3.0


class Step(threading.Thread):
    """A program that runs beside others: its lines are printed behind a label, its time is kept."""

    def __init__(self, label: str, command: list[str]) -> None:
        super().__init__(daemon=True)
        self.label = label
        self.seconds = 0.0
        self.code: int | None = None
        self.crates = 0
        self.begin = time.monotonic()
        self.told = self.begin
        # A process group of its own, so that cargo's compilers end with it.
        self.process = subprocess.Popen(
            command, cwd=places.CHECKOUT, env=dict(os.environ, CARGO_TERM_COLOR="never"), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )
        self.start()

    def run(self) -> None:
        """Read the program's lines until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.line(line.rstrip())
        self.code = self.process.wait()
        self.seconds = time.monotonic() - self.begin

    def line(self, text: str) -> None:
        """Print a line; cargo's three hundred crates become one line every ten seconds."""
        found = re.match(r"\s*(Compiling|Downloading|Downloaded|Blocking|Updating|Locking) (\S+)", text)
        if found:
            self.crates += found.group(1) == "Compiling"
            now = time.monotonic()
            if now - self.told < 10.0:
                return
            self.told = now
            text = f"  {self.crates} crates begun, {found.group(2)} is the latest"
        if text:
            say(f"{self.label:>8} | {text}")

    def finish(self) -> float:
        """Wait; the seconds that it took. A Problem where it failed."""
        self.join()
        if self.code != 0:
            raise Problem(self.code if self.code and self.code > 0 else FAILED, f"{self.label}: failed (see above)")
        return self.seconds

    def interrupt(self) -> None:
        """End the program and all that it started, as Ctrl-C would; what it has finished stays."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGINT)
        self.join()


def announce(program_there: bool) -> None:
    """Say what will happen and what is already there."""
    chosen = wheels.find(places.backend(), places.platform_name())
    folder = places.home() / "libtorch" / chosen.name
    there = not store.faults(folder, deep=False)
    cores = os.cpu_count() or 1
    minutes = COMPILE_MINUTES * 2 / max(2, min(cores, 8))
    fetched = sum(wheel.bytes or 0 for wheel in chosen.wheels)
    say("Levain's demo: fine-tune SmolLM2-135M-Instruct with LoRA on a real instruction dataset. It will")
    if there:
        say(f"  1. use libtorch {wheels.VERSION} ({chosen.backend}), which is there: {folder}")
    else:
        say(f"  1. fetch libtorch {wheels.VERSION} ({chosen.backend}): {size(fetched)}, {size(chosen.bytes)} kept in {folder}")
    if program_there:
        say("  2. compile what has changed (the programs are there)")
    else:
        say(f"  2. compile levain and its worker meanwhile: about {minutes:.0f} min on {cores} cores, 1.5 GB in target/")
    say(f"  3. fetch the model ({size(MODEL_BYTES)}) and the data ({size(DATA_BYTES)}) meanwhile, unless the cache has them")
    say(f"  4. run {RECIPE}: at most {RUN_MINUTES:.0f} min on 2 cores; nothing at all if it ran before")
    say()


def prepare(levain: Path, steps: list[Step]) -> list[tuple[str, float]]:
    """Fetch and compile, at the same time where that is possible; what was done and the seconds that it took."""
    build = programs.cargo() + ["build", "--release"]
    fresh = not levain.exists()
    phases: list[tuple[str, float]] = []

    def step(label: str, command: list[str]) -> Step:
        steps.append(Step(label, command))
        return steps[-1]

    setup = step("libtorch", [sys.executable, str(places.CHECKOUT / "scripts" / "setup.py")])
    sources: Step | None = None
    begin = time.monotonic()
    if fresh:
        first = step("compile", build + ["--no-default-features", "--features", "early"])
        while first.is_alive() and setup.is_alive():
            time.sleep(0.1)
        if first.is_alive() and setup.code == 0:
            # From now on the worker's long chain (libtorch's C++ interface first) can be compiled beside the rest.
            first.interrupt()
        elif setup.code in (None, 0):
            first.finish()
            sources = step("sources", [str(levain), "fetch", RECIPE])
    phases.append(("libtorch", setup.finish()))
    if fresh:
        both = ["-p", "levain", "-p", "levain-stages-torch", "--no-default-features", "--features", "levain/early"]
        second = step("compile", build + both)
        while second.is_alive():
            if sources is None and levain.exists():
                sources = step("sources", [str(levain), "fetch", RECIPE])
            time.sleep(0.1)
        second.finish()
    step("compile", build).finish()
    phases.append(("both programs compiled" + (", beside it" if fresh else ""), time.monotonic() - begin))
    if sources is not None:
        phases.append(("model and data, beside it", sources.finish()))
    return phases


def demo() -> int:
    """All of it; the exit code of `levain run`."""
    begin = time.monotonic()
    levain = programs.target_folder() / "release" / "levain"
    if not (places.CHECKOUT / RECIPE).exists():
        raise Problem(FAILED, f"{RECIPE} is not there", todo="take it from the repository again: git checkout recipes")
    announce(levain.exists())
    steps: list[Step] = []
    try:
        phases = prepare(levain, steps)
    finally:
        for step in steps:
            step.interrupt()
    command = [str(levain), "run", RECIPE]
    say()
    say(f"$ {os.path.relpath(levain, places.CHECKOUT)} run {RECIPE}")
    start = time.monotonic()
    code = subprocess.run(command, cwd=places.CHECKOUT).returncode
    phases.append(("recipe", time.monotonic() - start))
    say()
    for name, seconds in phases:
        say(f"{duration(seconds):>12}  {name}")
    say(f"{duration(time.monotonic() - begin):>12}  in all")
    return code if code >= 0 else FAILED


def main() -> None:
    """Run the demo and leave with its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(INTERRUPTED))
    try:
        raise SystemExit(demo())
    except Problem as problem:
        stop(problem)
    except KeyboardInterrupt:
        say("\ninterrupted; `make demo` goes on from here")
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
