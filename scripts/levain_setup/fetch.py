"""Fetches pinned wheels with pip (so that its own settings for indexes, proxies and mirrors hold) and checks them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Mapping

from .say import NO_ROOM, NOT_FETCHED, UNSUPPORTED, USAGE, WRONG_DIGEST, Problem, Progress, say, size
from .wheels import Wheel

TRIES = 3
"""pip retries broken connections itself; this is for a transfer that breaks in the middle."""


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while True:
            block = file.read(1 << 20)
            if not block:
                return digest.hexdigest()
            digest.update(block)


def at_hand(wheel: Wheel, environment: Mapping[str, str] = os.environ) -> Path | None:
    """A copy that the user gave with LEVAIN_TORCH_WHEEL: the torch wheel itself, a folder, or what lies beside it."""
    given = environment.get("LEVAIN_TORCH_WHEEL")
    if not given:
        return None
    place = Path(os.path.abspath(os.path.expanduser(given)))
    if not place.exists():
        raise Problem(
            USAGE, f"LEVAIN_TORCH_WHEEL names {place}, which is not there", todo="correct the path, or unset the variable"
        )
    if place.is_file() and wheel.name == "torch":
        return place
    candidate = (place if place.is_dir() else place.parent) / wheel.file
    return candidate if candidate.is_file() else None


def check(path: Path, wheel: Wheel, ours: bool) -> None:
    """Compare a file with its pin; a file of ours that differs is removed, so that the next try starts afresh."""
    found = sha256_of(path)
    if found == wheel.sha256:
        return
    if ours:
        path.unlink()
        todo = "run the same command again; if it happens again, the index that pip asks serves another file:\n"
        todo += f"try another index (see `pip config list`), or put the right {wheel.file} at hand: LEVAIN_TORCH_WHEEL=PATH"
    else:
        todo = f"put the right {wheel.file} there, or unset LEVAIN_TORCH_WHEEL to fetch it"
    raise Problem(
        WRONG_DIGEST,
        f"{wheel.file} is not the file that is pinned",
        why=f"its sha256 is  {found}\npinned is      {wheel.sha256}\n({path}{', removed' if ours else ''})",
        todo=todo,
    )


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Return a checked copy of the wheel: the user's, one in `folder` from an earlier try, or a fresh one."""
    given = at_hand(wheel)
    if given is not None:
        say(f"  {wheel.name} {wheel.version}: using {given}")
        check(given, wheel, ours=False)
        return given
    kept = folder / wheel.file
    if kept.is_file():
        if sha256_of(kept) == wheel.sha256:
            say(f"  {wheel.name} {wheel.version}: already fetched")
            return kept
        kept.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    got = download(wheel, folder)
    check(got, wheel, ours=True)
    os.replace(got, kept)
    shutil.rmtree(got.parents[1], ignore_errors=True)
    return kept


def pip_command() -> list[str]:
    """How pip is called; a Problem where this Python has none."""
    command = [sys.executable, "-m", "pip"]
    if subprocess.run(command + ["--version"], capture_output=True).returncode != 0:
        raise Problem(
            UNSUPPORTED,
            f"this Python has no pip: {sys.executable}",
            todo="install it (Debian, Ubuntu: apt install python3-pip; elsewhere: python3 -m ensurepip --user),\n"
            "or name a Python that has it: make setup PYTHON=/path/to/python3",
        )
    return command


def pip_environment(temporary: Path) -> dict[str, str]:
    """The user's environment, with pip's temporary files where a killed run's are cleaned up."""
    environment = dict(os.environ)
    environment.update(
        TMPDIR=str(temporary), PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", PIP_REQUIRE_VIRTUALENV="0"
    )
    return environment


def download(wheel: Wheel, folder: Path) -> Path:
    """Let pip download one wheel into a private folder under `folder`; returns the file there, not yet checked."""
    private = Path(tempfile.mkdtemp(prefix=".download-", dir=folder))
    into, temporary = private / "wheel", private / "tmp"
    into.mkdir()
    temporary.mkdir()
    command = pip_command() + [
        "download", f"{wheel.name}=={wheel.version}", "--no-deps", "--only-binary=:all:", "--no-cache-dir",
        "--python-version", "3.12", "--implementation", "cp", "--abi", "cp312", "--platform", wheel.tag,
        "--progress-bar", "off", "--dest", str(into),
    ]
    for attempt in range(1, TRIES + 1):
        code, log = follow(command, wheel, private, pip_environment(temporary))
        if code == 0:
            break
        if attempt == TRIES or is_final(log):
            shutil.rmtree(private, ignore_errors=True)
            raise not_fetched(wheel, log)
        say(f"  {wheel.name} {wheel.version}: {last_error(log)}; trying again ({attempt + 1} of {TRIES})")
        time.sleep(2 * attempt)
    files = list(into.iterdir())
    if [file.name for file in files] != [wheel.file]:
        names = ", ".join(sorted(file.name for file in files)) or "nothing"
        shutil.rmtree(private, ignore_errors=True)
        raise Problem(NOT_FETCHED, f"pip was to fetch {wheel.file} and brought {names}",
                      todo="look at `pip config list`: the index that it names has another build of this version")
    return files[0]


def follow(command: list[str], wheel: Wheel, private: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Run pip and show how its files grow (pip's own bar is for terminals only); its exit code and what it said."""
    log = private / "pip.log"
    progress = Progress(f"{wheel.name} {wheel.version}", wheel.bytes)
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        try:
            while True:
                try:
                    code = process.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    progress.at(grown(private))
        except BaseException:
            process.kill()
            process.wait()
            progress.drop()
            raise
    if code == 0:
        progress.end(sum(file.stat().st_size for file in (private / "wheel").iterdir()))
    else:
        progress.drop()
    return code, log.read_text(encoding="utf-8", errors="replace")


def grown(folder: Path) -> int:
    """The size of the largest file under a folder that another process is writing."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
            except OSError:
                pass  # moved meanwhile
    return largest


def is_final(log: str) -> bool:
    """Whether pip's answer will be the same next time."""
    return "No matching distribution" in log or "No space left" in log or "no such option" in log


def last_error(log: str) -> str:
    """The one line of pip's output that says most."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    # pip says "no matching distribution" also of an index that it could not reach; the retries before tell them apart.
    for pattern in (r"connection broken by", r"^ERROR: Could not (install|find)", r"^ERROR", r"Error\b"):
        for line in reversed(lines):
            if re.search(pattern, line):
                return line[:400]
    return lines[-1][:400] if lines else "pip said nothing"


def not_fetched(wheel: Wheel, log: str) -> Problem:
    """What is told when pip gave up."""
    amount = f" ({size(wheel.bytes)})" if wheel.bytes else ""
    if "No space left" in log:
        return Problem(NO_ROOM, f"the disk is full: {wheel.file}{amount} could not be written",
                       todo="make room, or name another cache directory: LEVAIN_HOME=/path/with/room")
    if "No matching distribution" in log and "connection broken by" not in log and "(from versions: none)" not in log:
        todo = f"the index that pip asks has other versions of {wheel.name}, not this one: ask another (`pip config list`);\n"
    else:
        todo = "check the network and pip's settings (`pip config list`, PIP_INDEX_URL, HTTPS_PROXY) and run it again;\n"
    todo += f"or bring the file yourself and say where it is: LEVAIN_TORCH_WHEEL=/path/to/{wheel.file}"
    return Problem(
        NOT_FETCHED,
        f"could not fetch {wheel.name} {wheel.version}: {wheel.file}{amount}",
        why=last_error(log),
        todo=todo,
    )
