"""Pinned packages in the cache directory, one folder for each Python and each list of pins: virtual environments, and
overlays that have a few packages in other versions.
"""

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
from typing import Callable

from . import places, store
from .fetch import last_error, pip_environment
from .say import FAILED, NOT_FETCHED, UNSUPPORTED, USAGE, Problem, duration, say

STAMP = "complete"
"""Written last into a folder; without it the folder is not believed."""

WHEELS = "--only-binary=:all:"
"""pip's option that nothing is to be built from source."""

# The pinned packages (numpy, pandas) exist for these only.
PYTHONS = ((3, 11), (3, 12), (3, 13))


@dataclass(frozen=True)
class Packages:
    """Pinned packages that are fetched once, and how they are spoken of."""

    requirements: Path
    """The pins, every package that others need among them."""

    variable: str
    """Names a folder that is to be used as it is."""

    cost: str
    """What making it takes, for the person who waits."""

    disk: int
    """Bytes that it takes while it is made."""

    def is_whole(self, folder: Path) -> bool:
        """Whether the folder was finished."""
        return (folder / STAMP).exists()

    def once(self, folder: Path, make: Callable[[], None]) -> None:
        """Call `make` for the folder and stamp it as the last step, where that was not done before."""
        if self.is_whole(folder):
            return
        count = sum(1 for line in self.requirements.read_text().splitlines() if line and not line.startswith("#"))
        say(f"The packages of {shown(self.requirements)} ({count}, {self.cost}) go once to\n  {folder}")
        store.make_folder(folder.parent)
        with store.lock(folder.parent / ".lock", "fetching Python packages"):
            if self.is_whole(folder):
                return
            store.sweep(folder.parent)
            if folder.exists():
                say("a folder that was never finished is there: starting anew")
                store.remove(folder)
            store.check_room(folder.parent, self.disk, "this set of Python packages")
            begin = time.monotonic()
            make()
            (folder / STAMP).write_text("every package is installed\n")
            say(f"made in {duration(time.monotonic() - begin)}")

    def install(self, pip: list[str], folder: Path, *options: str) -> None:
        """Let pip install the pins; its temporary files are beside `folder`."""
        temporary = tempfile.mkdtemp(prefix=store.PRIVATE, dir=folder.parent)
        # Every package is pinned, also those that others need: nothing is resolved, so nothing drifts.
        command = pip + ["install", "--no-deps", "--no-cache-dir", "--quiet", "--progress-bar", "off", *options]
        try:
            self.run(command + ["-r", str(self.requirements)], "could not install the packages", pip_environment(Path(temporary)))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

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
                f"or name a folder that has the packages of {shown(self.requirements)}: {self.variable}=/path",
            )


@dataclass(frozen=True)
class Environment(Packages):
    """A virtual environment."""

    target: str
    """What to call with another Python, e.g. `make interop`."""

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
        folder = packages_folder(version, self.requirements.read_bytes())
        self.once(folder, lambda: self.make(base, folder))
        return folder / "bin" / "python"

    def is_whole(self, folder: Path) -> bool:
        """Whether the folder was finished and its Python is still there: it is a link to the one that made it."""
        return super().is_whole(folder) and (folder / "bin" / "python").exists()

    def make(self, base: str, folder: Path) -> None:
        """Make the environment in its final place: it cannot be moved later."""
        # Debian ships venv without ensurepip: then this Python's own pip installs into the environment.
        has_pip = subprocess.run([base, "-c", "import ensurepip"], capture_output=True).returncode == 0
        self.run([base, "-m", "venv", str(folder)] + ([] if has_pip else ["--without-pip"]), "could not make a virtual environment")
        options = [] if self.sources else [WHEELS]
        self.install(pip_of(folder / "bin" / "python", base), folder, *options)


@dataclass(frozen=True)
class Overlay(Packages):
    """A few packages in other versions than an environment has: a folder that goes before it on Python's path of modules."""

    def prepare(self, python: Path) -> Path:
        """The folder for the environment of this Python, which is made first where it is missing."""
        own = os.environ.get(self.variable)
        if own:
            folder = Path(os.path.abspath(own))
            if not folder.is_dir():
                raise Problem(USAGE, f"{self.variable} names {own}, which is no folder")
            say(f"using the packages in {own} as they are")
            return folder
        folder = packages_folder(version_of(python), self.requirements.read_bytes())
        self.once(folder, lambda: self.install(pip_of(python, sys.executable), folder, WHEELS, "--target", str(folder)))
        return folder


def shown(path: Path) -> str:
    """A file of the checkout, as a person calls it."""
    return os.path.relpath(path, places.CHECKOUT)


def pip_of(python: Path, other: str) -> list[str]:
    """How to call the pip that installs for `python`: its own, or that of another Python where it has none."""
    own = [str(python), "-m", "pip"]
    has_pip = subprocess.run(own + ["--version"], capture_output=True).returncode == 0
    return own if has_pip else [other, "-m", "pip", "--python", str(python)]


def version_of(python: Path) -> tuple[int, int]:
    """The version of another Python."""
    command = [str(python), "-c", "import sys; print(*sys.version_info[:2])"]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0:
        raise Problem(FAILED, f"{python} does not run", why=last_error(answer.stderr))
    major, minor = answer.stdout.split()
    return int(major), int(minor)


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


def packages_folder(version: tuple[int, int], requirements: bytes) -> Path:
    """One folder for each Python and each list of pins."""
    digest = hashlib.sha256(requirements).hexdigest()[:16]
    return places.home() / "venv" / f"{digest}-py{version[0]}{version[1]}"
