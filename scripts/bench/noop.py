#!/usr/bin/env python3
"""Time of `levain run` where all of 1,000 stages, in chains of 10, are cached, against DVC's `repro` at 100 stages.

The ratio is DVC's time per stage over ours. Also printed: ours at 100 and 10,000 stages, and ninja, Snakemake and redun at 100.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import _harness as harness
from _levain import Recipe
from _noop_peers import Peer
from levain_setup.environment import Environment
from levain_setup.say import Problem, say

LINKS = 10
PEERS = Environment(
    requirements=harness.FOLDER / "noop-requirements.txt",
    variable="LEVAIN_BENCH_NOOP_VENV",
    target="make bench-noop",
    cost="100 MB to fetch, 330 MB on disk, a minute",
    disk=1_000_000_000,
    sources=True,
)


def timed(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> float:
    """The milliseconds of a whole process; it has to succeed."""
    begin = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   check=True)  # fmt: skip
    return (time.perf_counter() - begin) * 1000


def chains(count: int) -> Recipe:
    """`count` chains: a file of its own, then nine splits. No two stages have the same key."""
    stages: dict[str, dict] = {}
    for number in range(count):
        stages[f"rows{number}"] = {"kind": "load_dataset", "source": f"rows{number}.jsonl", "format": "text"}
        before = f"rows{number}"
        for place in range(1, LINKS):
            stages[f"link{number}-{place}"] = {"kind": "split", "data": before, "test": 1}
            before = f"link{number}-{place}.train"
    recipe = Recipe("bench-noop", stages)
    for number in range(count):
        text = "".join(json.dumps({"text": f"row {row} of {number}"}) + "\n" for row in range(LINKS + 10))
        (recipe.folder / f"rows{number}.jsonl").write_text(text)
    return recipe


def first(recipe: Recipe, stages: int) -> None:
    """Make everything, and see that the second run finds everything."""
    begin = time.perf_counter()
    counts = json.loads(harness.measured(recipe.command("run", "--json"))[0])["counts"]
    harness.equal((counts["ran"], counts["hits"]), (stages, 0), "stages that ran and that were cached at first")
    seconds = time.perf_counter() - begin
    counts = json.loads(harness.measured(recipe.command("run", "--json"))[0])["counts"]
    harness.equal((counts["ran"], counts["hits"]), (0, stages), "stages that ran and that were cached then")
    say(f"ours: {stages:,} stages were made in {seconds:.1f} s")


def ours(stages: int, repeats: int) -> list[float]:
    """Milliseconds of each second run of so many stages."""
    with chains(stages // LINKS) as recipe:
        first(recipe, stages)
        times = [timed(recipe.command("run"), recipe.folder) for _ in range(repeats)]
    say(f"ours, {stages:,} stages: {harness.spread(times, 'ms')}")
    return times


def others(folder: Path, programs: Path, repeats: int) -> None:
    """ninja, Snakemake and redun at 100 stages; one that does not run here is skipped with a word."""
    for name in ("ninja", "snakemake", "redun"):
        try:
            peer = Peer(name, folder / name, programs, 10, LINKS)
            peer.call(peer.command)
            before = peer.made()
            harness.equal(len(before), 100, f"files that {name} made")
            times = [timed(peer.command, peer.folder, peer.environment) for _ in range(repeats + 1)][1:]
            harness.equal(before, peer.made(), f"{name}: files made again")
        except harness.Unequal:
            raise
        except (Problem, subprocess.CalledProcessError, OSError) as problem:
            say(f"also: {name}: skipped: {problem}")
            continue
        say(f"also: {name}, 100 stages: {harness.spread(times, 'ms')}, {harness.median(times) / 100:.3f} ms a stage")


def main() -> None:
    """Ours at 1,000 and DVC at 100 alternately, then the rest."""
    options = harness.options(__doc__, rounds=11)
    say(f"noop on {harness.machine()}")
    programs = PEERS.prepare().parent
    folder = Path(tempfile.mkdtemp(prefix="levain-bench-noop-"))
    try:
        dvc = Peer("dvc", folder / "dvc", programs, 10, LINKS)
        dvc.call(dvc.command)
        before = dvc.made()
        harness.equal(len(before), 100, "files that DVC made")
        with chains(100) as recipe:
            first(recipe, 1000)
            mine, theirs = [], []
            for number in range(options.rounds + 1):
                mine.append(timed(recipe.command("run"), recipe.folder))
                theirs.append(timed(dvc.command, dvc.folder, dvc.environment))
            # The first of each is the warm-up.
            mine, theirs = mine[1:], theirs[1:]
        harness.equal(before, dvc.made(), "DVC: files made again")
        say(f"ours, 1,000 stages: {harness.spread(mine, 'ms')}, {harness.median(mine) / 1000:.4f} ms a stage")
        say(f"DVC, 100 stages: {harness.spread(theirs, 'ms')}, {harness.median(theirs) / 100:.3f} ms a stage")
        small = ours(100, options.rounds)
        if not options.quick:
            ours(10_000, options.rounds)
        others(folder, programs, min(options.rounds, 5))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say(f"both at 100 stages, whole process: ratio {harness.median(theirs) / harness.median(small):.1f}")
    say(f"NOOP 1000 stages: {harness.median(mine):.1f} ms")
    say(f"noop ratio {(harness.median(theirs) / 100) / (harness.median(mine) / 1000):.1f}")


if __name__ == "__main__":
    harness.run(main)
