#!/usr/bin/env python3
"""Lists the benchmarks in scripts/bench/, or runs the one that is named, with the built programs' paths.

    bench.py            the list
    bench.py NAME ...   run scripts/bench/NAME (or NAME.py, NAME.sh) with the rest of the arguments
"""

from __future__ import annotations

import os
import subprocess
import sys

from levain_setup import programs
from levain_setup.places import CHECKOUT
from levain_setup.say import FAILED, USAGE, Problem, say, stop

FOLDER = CHECKOUT / "scripts" / "bench"


def known() -> dict[str, str]:
    """Every benchmark's name and file. Names that begin with `_` are shared code."""
    found = {}
    if FOLDER.is_dir():
        for path in sorted(FOLDER.iterdir()):
            if path.is_file() and not path.name.startswith(("_", ".")) and path.suffix in ("", ".py", ".sh"):
                found[path.stem] = str(path)
    return found


def first_sentence(path: str) -> str:
    """What a benchmark says of itself in its first comment or docstring."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            text = line.strip().strip('"').lstrip("#").strip()
            if text and not line.startswith("#!") and "coding:" not in line:
                return text
    return ""


def main() -> None:
    """List or run."""
    benchmarks = known()
    if len(sys.argv) < 2:
        for name, path in benchmarks.items():
            say(f"make bench-{name:<14} {first_sentence(path)}")
        if not benchmarks:
            say("there are no benchmarks in scripts/bench yet")
        return
    name = sys.argv[1]
    if name not in benchmarks:
        stop(Problem(USAGE, f"there is no benchmark {name}", todo=f"known are: {', '.join(benchmarks) or 'none yet'}"))
    try:
        environment = programs.build()
    except Problem as problem:
        stop(problem)
    path = benchmarks[name]
    command = [path] if os.access(path, os.X_OK) else [sys.executable if path.endswith(".py") else "bash", path]
    code = subprocess.run(command + sys.argv[2:], cwd=CHECKOUT, env=environment).returncode
    raise SystemExit(code if code >= 0 else FAILED)


if __name__ == "__main__":
    main()
