"""What the benchmarks share: options, the peers' environment, medians, checks of equal work, and the last line."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
from pathlib import Path
from typing import Callable, NoReturn

from _levain import STORE, THREADS, measured
from levain_setup import places
from levain_setup.environment import Environment
from levain_setup.say import FAILED, INTERRUPTED, Problem, say, stop

FOLDER = places.CHECKOUT / "scripts" / "bench"
PEERS = Environment(
    requirements=FOLDER / "requirements.txt",
    variable="LEVAIN_BENCH_VENV",
    target="make bench-NAME",
    cost="with torch: about 3 GB to fetch, 6 GB on disk, minutes",
    disk=9_000_000_000,
)


def options(description: str, rounds: int = 3, steps: int | None = None, **flags: str) -> argparse.Namespace:
    """Read the command line: --rounds, --quick, for trainings --steps, and switches with their help."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"measured rounds of both sides (usually {rounds})")
    parser.add_argument("--quick", action="store_true", help="one round of shorter rows: is it all there?")
    if steps:
        parser.add_argument("--steps", type=int, default=steps, help=f"measured steps of a round (usually {steps})")
    for flag, text in flags.items():
        parser.add_argument(f"--{flag}", action="store_true", help=text)
    chosen = parser.parse_args()
    alone()
    if chosen.quick:
        chosen.rounds = 1
        chosen.steps = 1
    return chosen


def run(main: Callable[[], None]) -> None:
    """Call `main` and turn problems into exit codes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(INTERRUPTED))
    try:
        main()
    except Problem as problem:
        stop(problem)
    except KeyboardInterrupt:
        say("\ninterrupted")
        raise SystemExit(INTERRUPTED) from None


def peer(python: Path, script: str, job: dict, **environment: str) -> tuple[dict, int]:
    """Run a peer's script with its job; what it answers on its last line, and its peak memory in bytes."""
    threads = str(THREADS)
    around = dict(os.environ, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, PYTHONDONTWRITEBYTECODE="1", HF_HUB_OFFLINE="1",
                  TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="", **environment)  # fmt: skip
    text, memory = measured([str(python), str(FOLDER / script), json.dumps({**job, "threads": THREADS})], around)
    return json.loads(text.splitlines()[-1]), memory


def machine() -> str:
    """The processor and the threads that both sides use."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = dict(line.split(":", 1) for line in information.read_text().splitlines() if ":" in line)
        lines = {key.strip(): value.strip() for key, value in lines.items()}
        flags = lines.get("flags", "").split()
        known = [text for flag, text in (("avx2", "AVX2"), ("avx512f", "AVX-512"), ("avx512_bf16", "AVX-512 bf16"), ("amx_bf16", "AMX"))
                 if flag in flags]  # fmt: skip
        name = f"{lines.get('model name', name)} ({', '.join(known)})"
    return f"{name}, {THREADS} threads"


def alone() -> None:
    """Warn where other programs are at work: they take from both sides, but not evenly."""
    load = os.getloadavg()[0]
    if load > 0.3 * THREADS:
        say(f"note: other programs are at work here (load {load:.1f} on {THREADS} threads): these times vary")


def median(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def spread(values: list[float], unit: str = "s") -> str:
    """The median with the smallest and the largest value."""
    digits = 0 if median(values) >= 1000 else 1 if median(values) >= 10 else 2
    return f"{median(values):.{digits}f} {unit} ({min(values):.{digits}f} to {max(values):.{digits}f})"


class Unequal(Problem):
    """The two sides did not do the same work. Never to be skipped over."""


def different(text: str) -> NoReturn:
    """The two sides did not do the same work: there is no ratio."""
    raise Unequal(FAILED, f"the work was not equal: {text}", todo="no ratio is printed; look at both sides' inputs")


def equal(ours: object, theirs: object, what: str) -> None:
    """Stop unless both sides say the same."""
    if ours != theirs:
        different(f"{what}: ours {ours!r}, the peer's {theirs!r}")


def near(ours: list[float], theirs: list[float], tolerance: float, what: str) -> None:
    """Stop unless the numbers agree one by one, relative to the larger one."""
    equal(len(ours), len(theirs), f"{what}: how many")
    for index, (a, b) in enumerate(zip(ours, theirs), 1):
        if not abs(a - b) <= tolerance * max(abs(a), abs(b)):
            different(f"{what} {index}: ours {a:.5f}, the peer's {b:.5f}, more than {tolerance:.1%} apart")


def prepared(python: Path) -> tuple[Path, Path]:
    """The model's folder, as transformers saves it in bf16, and the folder of the rows; made once."""
    from _prepare import prepare

    return prepare(python, STORE)
