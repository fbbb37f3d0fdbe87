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
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from levain_setup import places, programs, store
from levain_setup.fetch import pip_environment, last_error
from levain_setup.say import FAILED, INTERRUPTED, NOT_FETCHED, UNSUPPORTED, USAGE, Problem, duration, say, stop

FOLDER = places.CHECKOUT / "tests" / "interop"
REQUIREMENTS = FOLDER / "requirements.txt"
STAMP = "complete"
"""Written last into an environment; without it the environment is not believed."""

# The pinned packages (numpy, pandas) exist for these only.
PYTHONS = ((3, 11), (3, 12), (3, 13))
DISK = 9_000_000_000
"""What the environment takes while it is made."""


def find_python() -> tuple[str, tuple[int, int]]:
    """A Python that the pinned packages exist for: this one, else one on the path."""
    if sys.version_info[:2] in PYTHONS:
        return sys.executable, sys.version_info[:2]
    for version in reversed(PYTHONS):
        other = shutil.which(f"python{version[0]}.{version[1]}")
        if other and subprocess.run([other, "-c", "import venv"], capture_output=True).returncode == 0:
            return other, version
    raise Problem(
        UNSUPPORTED,
        f"the pinned packages need Python 3.11, 3.12 or 3.13; this is {sys.version_info[0]}.{sys.version_info[1]}",
        todo="install one of them, or name it: make interop PYTHON=/path/to/python3.12",
    )


def environment_folder(version: tuple[int, int], requirements: bytes) -> Path:
    """The folder of the environment: one for each Python and each list of pins."""
    digest = hashlib.sha256(requirements).hexdigest()[:16]
    return places.home() / "venv" / f"{digest}-py{version[0]}{version[1]}"


def prepare() -> Path:
    """The Python of the virtual environment, which is made first where it is missing."""
    own = os.environ.get("LEVAIN_INTEROP_VENV")
    if own:
        python = Path(own) / "bin" / "python"
        if not python.exists():
            raise Problem(USAGE, f"LEVAIN_INTEROP_VENV names {own}, which has no bin/python")
        say(f"using the environment {own} as it is")
        return python
    base, version = find_python()
    folder = environment_folder(version, REQUIREMENTS.read_bytes())
    python = folder / "bin" / "python"
    if (folder / STAMP).exists() and python.exists():
        return python
    count = sum(1 for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#"))
    say(f"The reference packages ({count}, with torch: about 3 GB to fetch, 6 GB on disk, minutes) go once to\n  {folder}")
    store.make_folder(folder.parent)
    with store.lock(folder.parent / ".lock", "making the Python environment"):
        if (folder / STAMP).exists() and python.exists():
            return python
        store.sweep(folder.parent)
        if folder.exists():
            say("an environment that was never finished is there: starting anew")
            store.remove(folder)
        store.check_room(folder.parent, DISK, "the Python environment")
        begin = time.monotonic()
        make(base, folder)
        say(f"made in {duration(time.monotonic() - begin)}")
    return python


def make(base: str, folder: Path) -> None:
    """Make the environment in its final place (it cannot be moved later), and stamp it as the last step."""
    # Debian ships venv without ensurepip: then this Python's own pip installs into the environment.
    has_pip = subprocess.run([base, "-c", "import ensurepip"], capture_output=True).returncode == 0
    run([base, "-m", "venv", str(folder)] + ([] if has_pip else ["--without-pip"]), "could not make a virtual environment")
    temporary = tempfile.mkdtemp(prefix=store.PRIVATE, dir=folder.parent)
    inside = str(folder / "bin" / "python")
    command = [inside, "-m", "pip"] if has_pip else [base, "-m", "pip", "--python", inside]
    # Every package is pinned, also those that others need: nothing is resolved, so nothing drifts.
    command += ["install", "--no-deps", "--no-cache-dir", "--only-binary=:all:", "--quiet", "--progress-bar", "off"]
    try:
        run(command + ["-r", str(REQUIREMENTS)], "could not install the reference packages", pip_environment(Path(temporary)))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    (folder / STAMP).write_text("every package is installed\n")


def run(command: list[str], failure: str, environment: dict[str, str] | None = None) -> None:
    """Run a program that is silent when all is well; its last error otherwise. Says every half minute that it works."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        begin = time.monotonic()
        try:
            while True:
                try:
                    code = process.wait(timeout=30)
                    break
                except subprocess.TimeoutExpired:
                    say(f"  at work for {duration(time.monotonic() - begin)}")
        except BaseException:
            process.kill()
            process.wait()
            raise
        log.seek(0)
        text = log.read().decode("utf-8", "replace")
    if code != 0:
        raise Problem(
            NOT_FETCHED, failure, why=last_error(text),
            todo="check the network, the disk and pip's settings (`pip config list`), and run it again;\n"
            "or name an environment that has the packages of tests/interop/requirements.txt: LEVAIN_INTEROP_VENV=/path",
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
            say(f"ready: {prepare()}")
            return
        chosen = scripts(options.names)
        environment = programs.environment()
        python = prepare()
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
