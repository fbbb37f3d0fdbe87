"""Takes libtorch out of wheels: the libraries, the headers, the licenses, and nothing of Python."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path, PurePosixPath

from .say import WRONG_DIGEST, Problem, Progress
from .wheels import EVERY_LIBRARY, LINKER_SCRIPT, VERSION, Set, Wheel

# Needed by Python only.
PYTHON_LIBRARIES = ("libtorch_python.so", "libshm.so", "libtorch_global_deps.so")


def destination(member: str, wheel: Wheel) -> str | None:
    """Where a member of a wheel goes, relative to libtorch's folder; None where it is not needed."""
    path = PurePosixPath(member)
    if member.endswith("/") or path.is_absolute() or ".." in path.parts:
        return None
    parts = path.parts
    if len(parts) > 2 and parts[0].endswith(".dist-info") and parts[1] == "licenses":
        return "/".join(("licenses", wheel.name) + parts[2:])
    if wheel.name == "torch" and parts[:2] == ("torch", "include"):
        return "/".join(parts[1:])
    # torch/lib/NAME, and nvidia/PACKAGE/lib/NAME: all into one folder, where `$ORIGIN` in each library finds the others.
    if len(parts) < 3 or parts[-2] != "lib" or parts[0] not in ("torch", "nvidia"):
        return None
    name = parts[-1]
    if wheel.libraries == EVERY_LIBRARY:
        wanted = ".so" in name and name not in PYTHON_LIBRARIES
    else:
        wanted = name in wheel.libraries
    return f"lib/{name}" if wanted else None


def members(archive: zipfile.ZipFile, wheel: Wheel) -> list[tuple[zipfile.ZipInfo, str]]:
    """What is taken out of a wheel, and where it goes; a Problem where a named library is missing."""
    chosen = []
    for entry in archive.infolist():
        place = destination(entry.filename, wheel)
        if place is not None:
            chosen.append((entry, place))
    if wheel.libraries != EVERY_LIBRARY:
        missing = set(wheel.libraries) - {place[len("lib/"):] for _, place in chosen if place.startswith("lib/")}
        if missing:
            raise Problem(WRONG_DIGEST, f"{wheel.file} has no {', '.join(sorted(missing))}",
                          todo="the table in scripts/levain_setup/wheels.py is wrong for this platform: please report it")
    return chosen


def unpack(chosen: Set, archives: list[tuple[Wheel, Path]], folder: Path) -> dict[str, dict[str, object]]:
    """Write libtorch into `folder`; returns each file's sha256 and size by its path."""
    files: dict[str, dict[str, object]] = {}
    opened = []
    try:
        for wheel, path in archives:
            try:
                archive = zipfile.ZipFile(path)
            except (zipfile.BadZipFile, OSError) as error:
                raise Problem(WRONG_DIGEST, f"cannot read {path}", why=str(error)) from error
            opened.append((archive, members(archive, wheel)))
        total = sum(entry.file_size for _, entries in opened for entry, _ in entries)
        progress, done = Progress("unpacking", total), 0
        for archive, entries in opened:
            for entry, place in entries:
                with archive.open(entry) as source:
                    record = write(folder / place, source)
                files[place] = record
                done += entry.file_size
                progress.at(done)
        progress.end(done)
    finally:
        for archive, _ in opened:
            archive.close()
    texts = {"build-version": VERSION + "\n"}
    if chosen.linker_script:
        texts["lib/libtorch.so"] = LINKER_SCRIPT
    for place, text in texts.items():
        data = text.encode()
        (folder / place).write_bytes(data)
        files[place] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    return files


def write(path: Path, source) -> dict[str, object]:
    """Copy a stream to a file, hashing on the way."""
    os.makedirs(path.parent, exist_ok=True)
    digest, count = hashlib.sha256(), 0
    with open(path, "wb", buffering=0) as file:
        while True:
            block = source.read(1 << 20)
            if not block:
                return {"sha256": digest.hexdigest(), "bytes": count}
            file.write(block)
            digest.update(block)
            count += len(block)
