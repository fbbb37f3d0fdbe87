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
from ml_common import bits, digest, numbers, relative  # noqa: E402, F401
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


def run(golden, name, trainer, cases, refused=()):
    """NAME.safetensors and NAME.jsonl: every case in f64, with f32 as its witness, or in f32 alone where f64 is refused.

    `trainer(dtype, **settings)` gives the loss, the leaf whose gradient is wanted, what was logged, and more arrays by name.
    """
    arrays, lines = {}, []
    for case, changes in cases.items():
        results = []
        for dtype in [torch.float32] if case in refused else [torch.float64, torch.float32]:
            # Constants that the packages make without saying a dtype are of the default one.
            torch.set_default_dtype(dtype)
            loss, leaf, logged, *more = trainer(dtype, **changes)
            loss.backward()
            assert loss.ndim == 0 and loss.dtype == leaf.grad.dtype == dtype, f"{name} {case}: {loss.dtype}"
            assert leaf.grad.abs().max() > 0, f"{name} {case}: no gradient"
            results.append(({"gradient": leaf.grad, **(more[0] if more else {})}, loss.detach(), metrics(logged)))
        torch.set_default_dtype(torch.float32)
        (found, loss, logged), (single, single_loss, single_logged) = results[0], results[-1]
        distance = relative(single_loss, loss)
        for key, value in found.items():
            arrays[f"{key}/{case}"] = value
            distance = max(distance, relative(single[key], value))
        assert distance <= 2e-5, f"{name} {case}: f32 is {distance:.1e} away"
        for key, value in logged.items():
            assert abs(single_logged[key] - value) <= 2e-5 * max(1.0, abs(value)), f"{name} {case}: {key} in f32"
        lines.append({"case": case, "settings": changes, "dtype": "f32" if case in refused else "f64",
                      "f32_distance": None if case in refused else distance, "loss": loss.item(), "metrics": logged})  # fmt: skip
    golden.arrays(name, arrays)
    golden.cases(name, lines)
    return arrays, {line["case"]: line["metrics"] for line in lines}
