"""Builds our two programs and says where they are."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from .places import CHECKOUT
from .say import FAILED, UNSUPPORTED, Problem


def cargo() -> list[str]:
    """How cargo is called."""
    command = shlex.split(os.environ.get("CARGO") or "cargo")
    if shutil.which(command[0]) is None:
        raise Problem(UNSUPPORTED, f"{command[0]} is not there", todo="install Rust (rustup), or name it: make CARGO=/path/to/cargo")
    return command


def target_folder() -> Path:
    """Where cargo builds: `target`, or what the user's settings say."""
    command = cargo() + ["metadata", "--no-deps", "--format-version", "1"]
    answer = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    if answer.returncode != 0:
        raise Problem(FAILED, "cargo cannot read this workspace", why=answer.stderr.strip())
    return Path(json.loads(answer.stdout)["target_directory"])


def build() -> dict[str, str]:
    """Build both programs; an environment with their paths as LEVAIN and LEVAIN_WORKER."""
    setup = subprocess.run([sys.executable, str(CHECKOUT / "scripts" / "setup.py"), "--quiet"])
    if setup.returncode != 0:
        raise SystemExit(setup.returncode)
    if subprocess.run(cargo() + ["build", "--release"], cwd=CHECKOUT).returncode != 0:
        raise Problem(FAILED, "the build failed", why="see above")
    return environment()


def environment() -> dict[str, str]:
    """The environment with the paths of the built programs; a Problem where one is missing."""
    folder = target_folder() / "release"
    found = dict(os.environ, LEVAIN=str(folder / "levain"), LEVAIN_WORKER=str(folder / "levain-worker"))
    for name in ("LEVAIN", "LEVAIN_WORKER"):
        if not os.access(found[name], os.X_OK):
            raise Problem(FAILED, f"{found[name]} is not there", todo="run: make build")
    return found
