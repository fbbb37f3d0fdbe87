"""Folders in the cache directory that appear whole or not at all: a lock, a private folder, a manifest, one rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import Iterator

from .fetch import sha256_of
from .say import FAILED, NO_ROOM, Problem, duration, say

MANIFEST = "manifest.json"
"""Lists every file of a folder with its sha256 and size; written last."""

PRIVATE = ".making-"
"""The beginning of the names of folders that are being made; under the lock, all that are there are leftovers."""

DOOMED = ".removing-"
"""The beginning of the names of folders that are being removed."""


def make_folder(path: Path) -> None:
    """Create a folder of the cache directory, or say why that cannot be and what to do."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> Problem:
    """The Problem for a place that cannot be written."""
    return Problem(
        NO_ROOM,
        f"cannot write in the cache directory {path}",
        why=error.strerror or str(error),
        todo="make it writable, or name another one: LEVAIN_HOME=/path/that/is/writable make setup",
    )


def check_room(path: Path, needed: int, what: str) -> None:
    """Refuse early where the disk has not the room."""
    free = shutil.disk_usage(path).free
    if free < needed:
        raise Problem(
            NO_ROOM,
            f"not enough room on the disk of {path}",
            why=f"{what} needs {needed / 1e9:.1f} GB, free are {free / 1e9:.1f} GB",
            todo="make room, or name another cache directory: LEVAIN_HOME=/path/with/room make setup",
        )


@contextlib.contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Hold a file lock, waiting for whoever has it. The kernel frees it when its holder dies, however it dies.

    It saves double work only: what is published is right without it, so a file system without locks is no obstacle.
    """
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            say(f"another process{f' ({holder})' if holder else ''} is {what}: waiting for it")
            begin = time.monotonic()
            fcntl.flock(file, fcntl.LOCK_EX)
            say(f"waited {duration(time.monotonic() - begin)}")
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            say(f"note: no file locks on this file system ({error.strerror}): going on without")
        # Only a name for the one who waits; the lock itself is the kernel's.
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()}")
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file.truncate(0)


def sweep(parent: Path) -> None:
    """Remove what killed runs left behind. Call it under the lock only."""
    for entry in parent.iterdir():
        if entry.name.startswith((PRIVATE, DOOMED, ".download-")):
            shutil.rmtree(entry, ignore_errors=True)


def read_manifest(folder: Path) -> dict | None:
    """The manifest of a folder, or None where there is none that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        if isinstance(files, dict) and all({"sha256", "bytes"} <= set(record) for record in files.values()):
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def faults(folder: Path, deep: bool) -> list[str]:
    """What is wrong with a folder: nothing, or one line per file. Sizes always; `deep` hashes every file too."""
    manifest = read_manifest(folder)
    if manifest is None:
        return [f"{folder / MANIFEST} is missing or cannot be read"]
    found = []
    for name, record in manifest["files"].items():
        path = folder / name
        try:
            count = os.stat(path).st_size
        except OSError as error:
            found.append(f"{path}: {error.strerror}")
            continue
        if count != record["bytes"]:
            found.append(f"{path}: {count} bytes, should be {record['bytes']}")
        elif deep and sha256_of(path) != record["sha256"]:
            found.append(f"{path}: its sha256 is not the recorded one")
    return found


def publish(private: Path, target: Path, manifest: dict) -> None:
    """Write the manifest and rename the private folder to its name. Whoever comes second keeps the first one's."""
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (private / MANIFEST).write_text(text, encoding="utf-8")
    try:
        os.rename(private, target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        say(f"{target} was made by another process meanwhile: keeping that one")
        shutil.rmtree(private, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a published folder so that it is gone at once, never half there."""
    doomed = folder.with_name(f"{DOOMED}{folder.name}-{os.getpid()}")
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def lay_link(link: Path, target: Path) -> bool:
    """Point `link` at `target` in one step; False where it did already."""
    try:
        if os.readlink(link) == str(target):
            return False
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Problem(
            FAILED, f"{link} is in the way: it is not a link", why=error.strerror or "",
            todo=f"move it away (mv {link} {link}.mine) and run it again",
        ) from error
    fresh = link.with_name(f"{link.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    os.symlink(target, fresh)
    os.replace(fresh, link)
    return True
