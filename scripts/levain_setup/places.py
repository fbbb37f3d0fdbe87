"""Where things are: the user's cache directory, this checkout, this machine's platform, and which libtorch it needs."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Mapping

from .say import UNSUPPORTED, USAGE, Problem

CHECKOUT = Path(__file__).resolve().parents[2]
"""The folder of the Makefile."""

LINK = CHECKOUT / ".libtorch"
"""The link that `.cargo/config.toml` names."""


def home(environment: Mapping[str, str] = os.environ, system: str = sys.platform) -> Path:
    """The cache directory that every checkout of this user shares: LEVAIN_HOME, else where the system keeps caches."""
    chosen = environment.get("LEVAIN_HOME")
    if chosen:
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    if system == "darwin":
        return Path(os.path.expanduser("~/Library/Caches/levain"))
    shared = environment.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    base = Path(shared) if os.path.isabs(shared) else Path(os.path.expanduser("~/.cache"))
    return base / "levain"


def platform_name(system: str | None = None, machine: str | None = None) -> str:
    """This machine's row in the table of wheels, e.g. `x86_64-linux`."""
    system = (system or platform.system()).lower()
    machine = (machine or platform.machine()).lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    return f"{machine}-{'macos' if system == 'darwin' else system}"


def check_libc(libc: tuple[str, str] | None = None) -> None:
    """Refuse a Linux whose C library is older than the one that the wheels are built for (glibc 2.28)."""
    name, version = libc or platform.libc_ver()
    try:
        old = name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < (2, 28)
    except ValueError:
        old = False
    if old:
        raise Problem(
            UNSUPPORTED,
            f"libtorch's wheels need glibc 2.28 or newer, here is {name or 'another C library'} {version}".rstrip(),
            todo="use a newer Linux, or a libtorch of your own: export LIBTORCH=/its/folder and call cargo",
        )


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA driver is present."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def backend(environment: Mapping[str, str] = os.environ, driver: bool | None = None) -> str:
    """`cpu` or `cuda`: what LEVAIN_TORCH asks for, else what this machine has."""
    wish = environment.get("LEVAIN_TORCH", "auto") or "auto"
    if wish not in ("auto", "cpu", "cuda"):
        raise Problem(USAGE, f"LEVAIN_TORCH={wish} is not known", todo="use LEVAIN_TORCH=cpu, cuda or auto")
    if wish != "auto":
        return wish
    driver = has_nvidia_driver() if driver is None else driver
    return "cuda" if driver and sys.platform.startswith("linux") else "cpu"
