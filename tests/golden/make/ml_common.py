"""What the scripts ml_*.py share: numbers by formula, the tiny Llama, and files with their birth certificate.

Pinned: torch 2.13.0, transformers 5.23.0, peft 0.21.2, trl 1.16.0, safetensors 0.8.0, numpy 2.4.6.
"""

import hashlib
import importlib.metadata
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRMSNorm  # noqa: E402

DATA = Path(__file__).resolve().parents[1] / "data" / "ml"
PINNED = {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "trl": "1.16.0", "safetensors": "0.8.0", "numpy": "2.4.6"}
LIMIT = 100_000
"""Bytes of a committed file."""
VOCABULARY = 64

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


def bits(name, count):
    """64 random bits for each index of `name`: FNV-1a of the name, then splitmix64. The same lines are in Rust."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(state) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def numbers(name, shape, scale):
    """Numbers in ±scale, f64, the same bits in Rust. (A sine of a linear index would make matrices of rank two.)"""
    uniform = (bits(name, int(np.prod(shape))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return torch.from_numpy((uniform * 2.0 - 1.0) * scale).reshape(shape)


def tokens(name, count):
    """Token ids of the tiny vocabulary."""
    return torch.from_numpy((bits(name, count) % np.uint64(VOCABULARY)).astype(np.int64))


def weight(name, shape):
    """The formula of every weight of the tiny models."""
    if name.endswith("norm.weight"):
        return numbers(name, shape, 0.3) + 1.0
    return numbers(name, shape, 0.3)


def config(**changes):
    """The tiny Llama's shape."""
    settings = dict(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=None, attention_dropout=0.0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return LlamaConfig(**{**settings, **changes})


def exact_norm(self, x):
    """LlamaRMSNorm goes through f32 whatever it is given; torch's own operator keeps f64."""
    return torch.nn.functional.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)


def llama(dtype, **changes):
    """The tiny model with weights by formula; in f64 every operator but the tables of rope (f32 by design) is f64."""
    LlamaRMSNorm.forward = exact_norm if dtype == torch.float64 else PLAIN_NORM
    shape = config(**changes)
    shape._attn_implementation = "sdpa" if dtype == torch.float64 else "eager"
    model = LlamaForCausalLM(shape).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.data = weight(name, tuple(parameter.shape)).to(dtype)
    model.tie_weights()
    return model.to(dtype)


PLAIN_NORM = LlamaRMSNorm.forward


def relative(a, b):
    """The largest difference, relative to the largest value."""
    a, b = a.detach().double(), b.detach().double()
    return ((a - b).abs().max() / b.abs().max()).item()


def agree(a, b, tolerance, what):
    """The reference against itself, before anything is written."""
    distance = relative(a, b)
    assert distance <= tolerance, f"{what}: {distance:.2e}"


def digest(path):
    """sha256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def certificate():
    """Who made a file: the script, its digest, that of this file, and the versions."""
    script = Path(sys.argv[0]).resolve()
    made = {"script": script.name, "script_sha256": digest(script), "common_sha256": digest(__file__)}
    for package, version in PINNED.items():
        found = importlib.metadata.version(package)
        assert found == version, f"{package} is {found}, the golden values are made with {version}"
        made[package] = found
    return made


def write(name, tensors, folder=DATA):
    """One golden file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    save_file(tensors, path, metadata=certificate())
    path.chmod(0o644)
    size = path.stat().st_size
    if size > LIMIT:
        path.unlink()
        raise SystemExit(f"{path.name} has {size} bytes")
    print(f"{path.name}: {len(tensors)} tensors, {size} bytes")


def write_parts(name, tensors):
    """Golden tensors that need several files: NAME_0, NAME_1.."""
    part, room = {}, 0
    parts = []
    for key, value in tensors.items():
        size = value.numel() * value.element_size() + 200
        if part and room + size > LIMIT - 4000:
            parts.append(part)
            part, room = {}, 0
        part[key] = value
        room += size
    for index, part in enumerate(parts + [part]):
        write(f"{name}_{index}", part)
