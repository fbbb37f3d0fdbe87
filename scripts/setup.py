#!/usr/bin/env python3
"""Set-up of a checkout: libtorch in the user's cache directory, and the link `.libtorch` to it.

    setup.py            fetch what is missing, check it, lay the link (what `make setup` calls)
    setup.py --quiet    the same, silent when there is nothing to do
    setup.py verify     hash every file again; damaged ones are named, and the set is made anew
    setup.py where      print the folder of libtorch
    setup.py remove     remove the set of this machine from the cache directory

Environment: LEVAIN_HOME (cache directory), LEVAIN_TORCH (cpu, cuda, auto), LEVAIN_TORCH_WHEEL (a wheel at hand).
Exit codes: 0 done, 1 failed, 2 usage, 3 not fetched, 4 wrong digest, 5 cannot write or no room, 6 not supported.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from levain_setup import places, store, wheels
from levain_setup.fetch import at_hand, fetch
from levain_setup.say import INTERRUPTED, NO_ROOM, WRONG_DIGEST, Problem, duration, say, size, stop
from levain_setup.unpack import unpack


def chosen_set() -> wheels.Set:
    """The libtorch that this machine needs."""
    chosen = wheels.find(places.backend(), places.platform_name())
    if chosen.platform.endswith("-linux"):
        places.check_libc()
    return chosen


def folder_of(chosen: wheels.Set) -> Path:
    """Where that libtorch is, or will be."""
    return places.home() / "libtorch" / chosen.name


def announce(chosen: wheels.Set, target: Path) -> None:
    """Say what is about to happen: what is fetched, how big it is, what is there already, where it goes."""
    say(f"libtorch {wheels.VERSION} for {chosen.backend} on {chosen.platform} is not there yet. Set-up will")
    unmeasured = 0
    for wheel in chosen.wheels:
        state = ""
        if at_hand(wheel):
            state = ", at hand"
        elif (target.parent / "wheels" / wheel.file).exists():
            state = ", already fetched"
        if wheel.bytes is None:
            unmeasured += 1
            say(f"  - fetch {wheel.name} {wheel.version}{state}")
        else:
            say(f"  - fetch {wheel.name} {wheel.version} ({size(wheel.bytes)}){state}")
    say(f"  - keep {size(chosen.bytes)} of it in {target}")
    say(f"  - lay the link {places.LINK}")
    if unmeasured:
        say("  The wheels without a size are large: count on about 2.5 GB in all.")
    if not chosen.run:
        say("  note: this row of the table of wheels has never been run; tell us how it went")


def ensure(chosen: wheels.Set) -> bool:
    """Make sure that the set is in the cache directory; returns whether anything was to be done."""
    target = folder_of(chosen)
    if not store.faults(target, deep=False):
        return False
    begin = time.monotonic()
    announce(chosen, target)
    parent = target.parent
    store.make_folder(parent)
    with store.lock(parent / ".lock", "setting up libtorch"):
        store.sweep(parent)
        faults = store.faults(target, deep=False)
        if not faults:
            say(f"it is there now: {target}")
            return True
        if target.exists():
            say(f"what is there is damaged and will be replaced: {faults[0]}")
            store.remove(target)
        make(chosen, target)
    say(f"libtorch {wheels.VERSION} is in {target} ({duration(time.monotonic() - begin)})")
    return True


def make(chosen: wheels.Set, target: Path) -> None:
    """Fetch and unpack into a private folder, then publish it. The lock is held."""
    parent = target.parent
    fetched = parent / "wheels"
    if fetched.is_dir():
        store.sweep(fetched)
    compressed = sum(wheel.bytes or 250_000_000 for wheel in chosen.wheels if at_hand(wheel) is None)
    store.check_room(parent, compressed + chosen.bytes, "libtorch with its wheels")
    try:
        archives = [(wheel, fetch(wheel, fetched)) for wheel in chosen.wheels]
        private = Path(tempfile.mkdtemp(prefix=store.PRIVATE, dir=parent))
        try:
            os.chmod(private, 0o755)
            files = unpack(chosen, archives, private)
            manifest = {
                "libtorch": wheels.VERSION,
                "backend": chosen.backend,
                "platform": chosen.platform,
                "wheels": {wheel.file: wheel.sha256 for wheel in chosen.wheels},
                "files": files,
            }
            store.publish(private, target, manifest)
        finally:
            shutil.rmtree(private, ignore_errors=True)
    except OSError as error:
        raise store.cannot_write(parent, error) from error
    shutil.rmtree(fetched, ignore_errors=True)


def link(chosen: wheels.Set) -> bool:
    """Lay the checkout's link; returns whether it was laid anew."""
    target = folder_of(chosen)
    before = os.readlink(places.LINK) if places.LINK.is_symlink() else None
    if not store.lay_link(places.LINK, target):
        return False
    # Cargo looks at the times of files behind the link, not at the link: a young one makes it link programs anew.
    with contextlib.suppress(OSError):
        os.utime(target / "build-version")
    say(f".libtorch -> {target}" + (f" (was {before})" if before else ""))
    return True


def warn_of_override() -> None:
    """An exported LIBTORCH is stronger than the link: say so, once."""
    own = os.environ.get("LIBTORCH")
    if own and os.path.realpath(own) != os.path.realpath(places.LINK):
        say(f"note: LIBTORCH={own} is exported in this shell and wins over .libtorch; `unset LIBTORCH` to use set-up's")


def set_up(quiet: bool) -> None:
    """The default command."""
    chosen = chosen_set()
    done = ensure(chosen)
    done = link(chosen) or done
    warn_of_override()
    if not done and not quiet:
        say(f"libtorch {wheels.VERSION} ({chosen.backend}) is there: {folder_of(chosen)}")


def verify() -> None:
    """Hash the whole set again; make it anew where it is damaged."""
    chosen = chosen_set()
    target = folder_of(chosen)
    if not target.exists():
        raise Problem(WRONG_DIGEST, f"there is nothing to verify: {target} is not there", todo="run: make setup")
    found = store.faults(target, deep=True)
    if not found:
        manifest = store.read_manifest(target) or {"files": {}}
        total = sum(record["bytes"] for record in manifest["files"].values())
        say(f"{target}: {len(manifest['files'])} files, {size(total)}, all as recorded")
        return
    for fault in found[:10]:
        say(fault)
    say(f"{len(found)} {'file is' if len(found) == 1 else 'files are'} damaged: making the set anew")
    with store.lock(target.parent / ".lock", "setting up libtorch"):
        if target.exists():
            store.remove(target)
    set_up(quiet=False)


def remove() -> None:
    """Remove this machine's set; other checkouts will fetch it again when they need it."""
    target = folder_of(chosen_set())
    if not target.exists():
        say(f"{target} is not there")
        return
    try:
        with store.lock(target.parent / ".lock", "setting up libtorch"):
            store.remove(target)
    except OSError as error:
        raise Problem(NO_ROOM, f"cannot remove {target}", why=error.strerror or str(error)) from error
    say(f"removed {target}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", default="setup", choices=("setup", "verify", "where", "remove"))
    parser.add_argument("--quiet", action="store_true", help="say nothing when there is nothing to do")
    options = parser.parse_args()
    # A polite kill unwinds like Ctrl-C, so that pip ends and private folders go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(INTERRUPTED))
    try:
        if options.command == "setup":
            set_up(options.quiet)
        elif options.command == "verify":
            verify()
        elif options.command == "where":
            say(str(folder_of(chosen_set())))
        else:
            remove()
    except Problem as problem:
        stop(problem)
    except KeyboardInterrupt:
        say("\ninterrupted; nothing half-made is left where it would be used")
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
