#!/usr/bin/env python3
"""Runs every tests/interop/*.py in a cached virtual environment with pinned versions of the real Python packages.

    interop.py             all scripts whose names do not begin with `_`
    interop.py NAME ...    these only (without .py)
    interop.py --prepare   make the environment and stop

Each script gets the paths of our programs as LEVAIN and LEVAIN_WORKER, runs at the top of the checkout, and passes by
exit code 0. The environment is kept in the cache directory under the digest of tests/interop/requirements.txt.
LEVAIN_INTEROP_VENV names an environment to use as it is instead. Exit codes: as setup.py; 1 also if no script ran.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

from levain_setup import places, programs
from levain_setup.environment import Environment
from levain_setup.say import FAILED, INTERRUPTED, USAGE, Problem, duration, say, stop

FOLDER = places.CHECKOUT / "tests" / "interop"
ENVIRONMENT = Environment(
    requirements=FOLDER / "requirements.txt",
    variable="LEVAIN_INTEROP_VENV",
    target="make interop",
    cost="with torch: about 3 GB to fetch, 6 GB on disk, minutes",
    disk=9_000_000_000,
)

def scripts(names: list[str]) -> list[Path]:
    """The scripts to run; a Problem for an unknown name or none at all."""
    found = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if not path.name.startswith("_")}
    unknown = [name for name in names if name not in found]
    if unknown:
        raise Problem(USAGE, f"there is no tests/interop/{unknown[0]}.py", todo=f"known are: {', '.join(found) or 'none'}")
    chosen = [found[name] for name in names] if names else list(found.values())
    if not chosen:
        raise Problem(FAILED, "tests/interop has no scripts: nothing was tested")
    return chosen


def check(python: Path, script: Path, environment: dict[str, str], width: int) -> bool:
    """Run one script; its output is shown only where it fails."""
    begin = time.monotonic()
    answer = subprocess.run(
        [str(python), str(script)], cwd=places.CHECKOUT, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    seconds = duration(time.monotonic() - begin)
    output = answer.stdout.decode("utf-8", "replace").rstrip()
    passed = answer.returncode == 0
    last = output.splitlines()[-1][:100] if output else ""
    say(f"{'pass' if passed else 'FAIL'}  {script.stem:<{width}}  {seconds:>9}  {last if passed else f'exit code {answer.returncode}'}")
    if not passed:
        say("".join(f"      {line}\n" for line in output.splitlines()[-60:]).rstrip("\n"))
    return passed


def main() -> None:
    """Read the command line, prepare, run, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="scripts in tests/interop, without .py")
    parser.add_argument("--prepare", action="store_true", help="make the environment and stop")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(INTERRUPTED))
    try:
        if options.prepare:
            say(f"ready: {ENVIRONMENT.prepare()}")
            return
        chosen = scripts(options.names)
        environment = programs.environment()
        python = ENVIRONMENT.prepare()
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        width = max(len(script.stem) for script in chosen)
        results = [check(python, script, environment, width) for script in chosen]
    except Problem as problem:
        stop(problem)
    except KeyboardInterrupt:
        say("\ninterrupted")
        raise SystemExit(INTERRUPTED) from None
    say(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    if not all(results):
        raise SystemExit(FAILED)


if __name__ == "__main__":
    main()
