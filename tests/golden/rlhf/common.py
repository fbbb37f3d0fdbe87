"""What the scripts of this folder share: trainers without their set-up, and files with their birth certificate.

NAME.safetensors holds arrays, NAME.jsonl one line of settings and numbers a case; made_by.json says of every script its
digest, the versions it ran with and the files it wrote. Numbers are made by the formula of ../make/ml_common.py.
"""

import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "make"))

import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from ml_common import agree, bits, digest, numbers, relative  # noqa: E402, F401
from safetensors.torch import save_file  # noqa: E402

PINNED = {"torch": "2.13.0", "transformers": "5.23.0", "accelerate": "1.15.0", "safetensors": "0.8.0", "numpy": "2.4.6"}
LIMIT = 200_000
"""Bytes of a committed file."""


class Golden:
    """The files of one script, which are written at its end."""

    def __init__(self, trl):
        self.script = Path(sys.argv[0]).resolve()
        self.made = {"script_sha256": digest(self.script), "common_sha256": digest(__file__)}
        for package, version in {**PINNED, **({"trl": trl} if trl else {})}.items():
            found = importlib.metadata.version(package)
            assert found == version, f"{package} is {found}, the golden values are made with {version}"
            self.made[package] = found
        self.made["files"] = {}

    def _note(self, path):
        path.chmod(0o644)
        size = path.stat().st_size
        if size > LIMIT:
            path.unlink()
            raise SystemExit(f"{path.name} has {size} bytes")
        self.made["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{path.name}: {size} bytes")

    def arrays(self, name, tensors):
        """NAME.safetensors."""
        for key, value in tensors.items():
            assert not value.is_floating_point() or value.isfinite().all(), f"{name}: {key} is not finite"
        tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
        certificate = {"script": self.script.name, **{key: value for key, value in self.made.items() if key != "files"}}
        # One text, because safetensors writes several in any order, and the same script shall make the same bytes.
        save_file(tensors, HERE / f"{name}.safetensors", metadata={"made_by": json.dumps(certificate)})
        self._note(HERE / f"{name}.safetensors")

    def cases(self, name, cases):
        """NAME.jsonl."""
        text = "".join(json.dumps(case, allow_nan=False) + "\n" for case in cases)
        (HERE / f"{name}.jsonl").write_text(text)
        self._note(HERE / f"{name}.jsonl")

    def close(self):
        """The entry of this script in made_by.json."""
        path = HERE / "made_by.json"
        made = json.loads(path.read_text()) if path.exists() else {}
        made[self.script.name] = self.made
        path.write_text(json.dumps(dict(sorted(made.items())), indent=1) + "\n")


def settings(kind, **changes):
    """A trainer's own configuration, which checks what it is given."""
    folder = tempfile.gettempdir()
    return kind(output_dir=folder, use_cpu=True, report_to=[], bf16=False, **changes)


def bare(kind, **attributes):
    """A trainer whose constructor did not run, with the attributes that its loss reads."""
    trainer = kind.__new__(kind)
    trainer.accelerator = Accelerator(cpu=True)
    for name, value in attributes.items():
        setattr(trainer, name, value)
    return trainer


def metrics(found):
    """What a trainer logged, each the mean of its list, as `log` makes it."""
    return {name: float(sum(values)) / len(values) for name, values in sorted(found.items())}
