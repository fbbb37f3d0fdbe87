"""Golden values of the operators: outputs and gradients in f64 of torch's and transformers' own functions.

Usage: OMP_NUM_THREADS=1 python tests/golden/make/ml_operators.py
Inputs are numbers by formula, so only outputs and gradients are stored. `bf16/...` has the same in f64 for inputs that
were rounded to bf16 first, so that a bf16 operator is measured by its own rounding alone.
"""

import torch
from ml_common import agree, config, numbers, tokens, write
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

EPS = 1e-5
LENGTHS = [5, 1, 12, 3]
HEADS, GROUPS, SIZE = 4, 2, 8
POSITIONS = [0, 1, 2, 3, 17, 63, 100, 255]
THETAS = [10000.0, 100000.0]

golden = {}


def leaf(name, shape, scale, round_to=None):
    """An input by formula that takes a gradient."""
    value = numbers(name, shape, scale)
    if round_to is not None:
        value = value.to(round_to).double()
    return value.requires_grad_()


def keep(prefix, name, y, leaves, round_to=None):
    """Stores y and the gradients of sum(y · weights) for fixed weights."""
    way = numbers(f"{name}.gradient", tuple(y.shape), 1.0)
    if round_to is not None:
        way = way.to(round_to).double()
    gradients = torch.autograd.grad((y * way).sum(), list(leaves.values()))
    golden[f"{prefix}{name}"] = y
    for (key, _), gradient in zip(leaves.items(), gradients):
        golden[f"{prefix}{name}.{key}"] = gradient


def attention(q, k, v, lengths):
    """Rows one after the other, each causal on its own, through torch's attention with shared key heads."""
    results, start = [], 0
    for length in lengths:
        part = lambda x, heads: x[start : start + length].view(1, length, heads, SIZE).transpose(1, 2)  # noqa: E731
        y = F.scaled_dot_product_attention(part(q, HEADS), part(k, GROUPS), part(v, GROUPS), is_causal=True, enable_gqa=True)
        results.append(y.transpose(1, 2).reshape(length, HEADS * SIZE))
        start += length
    return torch.cat(results)


def check_attention(q, k, v, y):
    """transformers' own eager attention, which softmaxes in f32, says the same."""
    module = type("M", (), {"num_key_value_groups": HEADS // GROUPS, "training": False})()
    start = 0
    for length in LENGTHS:
        part = lambda x, heads: x[start : start + length].view(1, length, heads, SIZE).transpose(1, 2)  # noqa: E731
        mask = torch.full((length, length), float("-inf"), dtype=q.dtype).triu(1)[None, None]
        theirs, _ = eager_attention_forward(
            module, part(q, HEADS), part(k, GROUPS), part(v, GROUPS), mask, scaling=SIZE**-0.5, dropout=0.0
        )
        agree(theirs.reshape(length, HEADS * SIZE), y[start : start + length], 1e-6, "eager attention")
        start += length


def operators(prefix, round_to):
    """Every operator once."""
    x = leaf("rms_norm.x", (7, 48), 2.0, round_to)
    w = leaf("rms_norm.weight", (48,), 1.5, round_to)
    y = F.rms_norm(x, (48,), w, EPS)
    theirs = LlamaRMSNorm(48, EPS)
    theirs.weight.data = w.detach().float()
    agree(theirs(x.detach().float()), y, 1e-6, "LlamaRMSNorm")
    keep(prefix, "rms_norm", y, {"x": x, "weight": w}, round_to)

    positions = torch.tensor(POSITIONS)
    for theta in THETAS:
        shape = config(hidden_size=HEADS * SIZE, rope_parameters={"rope_type": "default", "rope_theta": theta})
        rope = LlamaRotaryEmbedding(shape)
        q = leaf("rope.q", (len(POSITIONS), HEADS * SIZE), 1.0, round_to)
        k = leaf("rope.k", (len(POSITIONS), GROUPS * SIZE), 1.0, round_to)
        split = lambda x, heads: x.view(1, -1, heads, SIZE).transpose(1, 2)  # noqa: E731
        cos, sin = rope(q.unsqueeze(0), positions.unsqueeze(0))
        both = apply_rotary_pos_emb(split(q, HEADS), split(k, GROUPS), cos, sin)
        join = lambda x: x.transpose(1, 2).reshape(len(POSITIONS), -1)  # noqa: E731
        keep(prefix, f"rope_{theta:.0f}.q", join(both[0]), {"x": q}, round_to)
        keep(prefix, f"rope_{theta:.0f}.k", join(both[1]), {"x": k}, round_to)

    total = sum(LENGTHS)
    q = leaf("attend.q", (total, HEADS * SIZE), 2.0, round_to)
    k = leaf("attend.k", (total, GROUPS * SIZE), 2.0, round_to)
    v = leaf("attend.v", (total, GROUPS * SIZE), 1.0, round_to)
    y = attention(q, k, v, LENGTHS)
    check_attention(q.detach(), k.detach(), v.detach(), y.detach())
    keep(prefix, "attend", y, {"q": q, "k": k, "v": v}, round_to)

    gate = leaf("silu_mul.gate", (6, 40), 4.0, round_to)
    up = leaf("silu_mul.up", (6, 40), 2.0, round_to)
    keep(prefix, "silu_mul", ACT2FN["silu"](gate) * up, {"gate": gate, "up": up}, round_to)

    x = leaf("linear.x", (9, 48), 1.0, round_to)
    w = leaf("linear.weight", (40, 48), 0.5, round_to)
    b = leaf("linear.bias", (40,), 1.0, round_to)
    keep(prefix, "linear", F.linear(x, w, b), {"x": x, "weight": w, "bias": b}, round_to)

    hidden = leaf("cross_entropy.hidden", (21, 32), 2.0, round_to)
    head = leaf("cross_entropy.head", (64, 32), 0.7, round_to)
    logits = F.linear(hidden, head)
    targets = tokens("cross_entropy.targets", 21)
    loss = F.cross_entropy(logits, targets, reduction="sum")
    golden[f"{prefix}cross_entropy"] = loss
    golden[f"{prefix}cross_entropy.log_probabilities"] = -F.cross_entropy(logits, targets, reduction="none")
    golden[f"{prefix}cross_entropy.correct"] = (logits.argmax(-1) == targets).sum()
    for key, gradient in zip(["hidden", "head"], torch.autograd.grad(loss, [hidden, head])):
        golden[f"{prefix}cross_entropy.{key}"] = gradient


operators("", None)
plain, golden = golden, {}
write("operators", plain)
operators("bf16/", torch.bfloat16)
# What bf16 can show does not need f64.
write("operators_bf16", {key: value.float() if value.is_floating_point() else value for key, value in golden.items()})
