"""Cached virtual environments with pinned packages, one for each Python and each list of pins."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import places, store
from .fetch import last_error, pip_environment
from .say import NOT_FETCHED, UNSUPPORTED, USAGE, Problem, duration, say

STAMP = "complete"
"""Written last into an environment; without it the environment is not believed."""

# The pinned packages (numpy, pandas) exist for these only.
PYTHONS = ((3, 11), (3, 12), (3, 13))


@dataclass(frozen=True)
class Environment:
    """What an environment is made of, and how it is spoken of."""

    requirements: Path
    """The pins, every package that others need among them."""

    variable: str
    """Names an environment that is to be used as it is."""

    target: str
    """What to call with another Python, e.g. `make interop`."""

    cost: str
    """What making it takes, for the person who waits."""

    disk: int
    """Bytes that it takes while it is made."""

    sources: bool = False
    """Whether packages may be built from source: some have no wheel."""

    def prepare(self) -> Path:
        """The Python of the environment, which is made first where it is missing."""
        own = os.environ.get(self.variable)
        if own:
            python = Path(own) / "bin" / "python"
            if not python.exists():
                raise Problem(USAGE, f"{self.variable} names {own}, which has no bin/python")
            say(f"using the environment {own} as it is")
            return python
        base, version = find_python(self.target)
        folder = environment_folder(version, self.requirements.read_bytes())
        python = folder / "bin" / "python"
        if (folder / STAMP).exists() and python.exists():
            return python
        count = sum(1 for line in self.requirements.read_text().splitlines() if line and not line.startswith("#"))
        say(f"The reference packages ({count}, {self.cost}) go once to\n  {folder}")
        store.make_folder(folder.parent)
        with store.lock(folder.parent / ".lock", "making the Python environment"):
            if (folder / STAMP).exists() and python.exists():
                return python
            store.sweep(folder.parent)
            if folder.exists():
                say("an environment that was never finished is there: starting anew")
                store.remove(folder)
            store.check_room(folder.parent, self.disk, "the Python environment")
            begin = time.monotonic()
            self.make(base, folder)
            say(f"made in {duration(time.monotonic() - begin)}")
        return python

    def make(self, base: str, folder: Path) -> None:
        """Make the environment in its final place (it cannot be moved later), and stamp it as the last step."""
        # Debian ships venv without ensurepip: then this Python's own pip installs into the environment.
        has_pip = subprocess.run([base, "-c", "import ensurepip"], capture_output=True).returncode == 0
        self.run([base, "-m", "venv", str(folder)] + ([] if has_pip else ["--without-pip"]), "could not make a virtual environment")
        temporary = tempfile.mkdtemp(prefix=store.PRIVATE, dir=folder.parent)
        inside = str(folder / "bin" / "python")
        command = [inside, "-m", "pip"] if has_pip else [base, "-m", "pip", "--python", inside]
        # Every package is pinned, also those that others need: nothing is resolved, so nothing drifts.
        command += ["install", "--no-deps", "--no-cache-dir", "--quiet", "--progress-bar", "off"]
        command += [] if self.sources else ["--only-binary=:all:"]
        command += ["-r", str(self.requirements)]
        try:
            self.run(command, "could not install the reference packages", pip_environment(Path(temporary)))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        (folder / STAMP).write_text("every package is installed\n")

    def run(self, command: list[str], failure: str, environment: dict[str, str] | None = None) -> None:
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
                f"or name an environment that has the packages of {self.requirements.relative_to(places.CHECKOUT)}: "
                f"{self.variable}=/path",
            )


def find_python(target: str) -> tuple[str, tuple[int, int]]:
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
        todo=f"install one of them, or name it: {target} PYTHON=/path/to/python3.12",
    )


def environment_folder(version: tuple[int, int], requirements: bytes) -> Path:
    """The folder of an environment: one for each Python and each list of pins."""
    digest = hashlib.sha256(requirements).hexdigest()[:16]
    return places.home() / "venv" / f"{digest}-py{version[0]}{version[1]}"
