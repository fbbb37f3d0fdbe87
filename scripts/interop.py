#!/usr/bin/env python3
"""Runs every tests/interop/*.py in a cached virtual environment with pinned versions of the real Python packages.

    interop.py             all scripts whose names do not begin with `_`
    interop.py NAME ...    these only (without .py)
    interop.py --prepare   fetch the packages and stop

Each script gets the paths of our programs as LEVAIN and LEVAIN_WORKER, runs at the top of the checkout, and passes by
exit code 0. The environment is kept in the cache directory under the digest of tests/interop/requirements.txt. A script
NAME.py that needs some packages in other versions lists them in NAME-requirements.txt: they are kept in a folder of their
own, likewise, which goes before the environment on PYTHONPATH for this script. LEVAIN_INTEROP_VENV names an environment
to use as it is instead, LEVAIN_INTEROP_OVERLAY such a folder. Exit codes: as setup.py; 1 also if no script ran.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from levain_setup import places, programs
from levain_setup.environment import Environment, Overlay
from levain_setup.say import FAILED, INTERRUPTED, USAGE, Problem, duration, say, stop

FOLDER = places.CHECKOUT / "tests" / "interop"
ENVIRONMENT = Environment(
    requirements=FOLDER / "requirements.txt",
    variable="LEVAIN_INTEROP_VENV",
    target="make interop",
    cost="with torch: about 3 GB to fetch, 6 GB on disk, minutes",
    disk=9_000_000_000,
)


def overlay(script: Path) -> Overlay | None:
    """The packages that a script needs in other versions, if any."""
    requirements = script.with_name(f"{script.stem}-requirements.txt")
    if not requirements.exists():
        return None
    return Overlay(requirements, "LEVAIN_INTEROP_OVERLAY", cost="20 MB to fetch, 140 MB on disk", disk=300_000_000)


def prepare(chosen: list[Path]) -> tuple[Path, dict[Path, Path]]:
    """The Python that runs the scripts, and the folders of the overlays, by script."""
    python = ENVIRONMENT.prepare()
    overlays = {script: overlay(script) for script in chosen}
    return python, {script: packages.prepare(python) for script, packages in overlays.items() if packages}


def found_first(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """The environment in which Python looks for modules in a folder first."""
    rest = environment.get("PYTHONPATH")
    return environment | {"PYTHONPATH": os.pathsep.join([str(folder)] + ([rest] if rest else []))}


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
    parser.add_argument("--prepare", action="store_true", help="fetch the packages and stop")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(INTERRUPTED))
    try:
        chosen = scripts(options.names)
        if options.prepare:
            python, overlays = prepare(chosen)
            for ready in [python, *overlays.values()]:
                say(f"ready: {ready}")
            return
        environment = programs.environment()
        python, overlays = prepare(chosen)
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        width = max(len(script.stem) for script in chosen)
        results = []
        for script in chosen:
            own = found_first(overlays[script], environment) if script in overlays else environment
            results.append(check(python, script, own, width))
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
