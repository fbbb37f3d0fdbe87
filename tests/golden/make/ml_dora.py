"""Golden values of DoRA and (IA)³: PEFT's logits and gradients on the tiny Llama with adapters by formula.

Usage: OMP_NUM_THREADS=1 python tests/golden/make/ml_dora.py
Logits are those of the last tokens of the rows; gradients are of the linears in CHOSEN, one of each shape and place.
"""

import torch
from ml_common import agree, llama, numbers, tokens, write
from peft import IA3Config, LoraConfig, get_peft_model
from torch.nn import functional as F

ROWS = [tokens(f"row {index}", length) for index, length in enumerate([13, 1, 7, 2, 24])]
CHOSEN = ["model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.layers.0.mlp.gate_proj"]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def plain(name):
    """Our name of one of PEFT's parameters."""
    name = name.removeprefix("base_model.model.").replace(".default", "")
    return name.removesuffix(".weight") if "magnitude" in name else name


def value(name, shape):
    """The formula of adapters: A and B in ±0.2; magnitudes and scales near one, as far from the start as training takes them."""
    away = "magnitude" in name or "ia3_l" in name
    return numbers(name, shape, 0.2) + (1.0 if away else 0.0)


def filled(model, dtype):
    """The adapter by formula."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "ia3_l" in name:
                parameter.data = value(plain(name), tuple(parameter.shape)).to(dtype)
    return model.eval()


def dora(dtype, bias=False, **changes):
    """The tiny model with DoRA on every linear."""
    settings = dict(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=True)
    model = llama(dtype, attention_bias=bias, mlp_bias=bias)
    return filled(get_peft_model(model, LoraConfig(**{**settings, **changes})), dtype)


def ia3(dtype, bias=False, **changes):
    """The tiny model with (IA)³."""
    model = llama(dtype, attention_bias=bias, mlp_bias=bias)
    return filled(get_peft_model(model, IA3Config(task_type="CAUSAL_LM", **changes)), dtype)


def forward(model):
    """Logits of each row's last token, and the sum of the losses of every token but the first of a row."""
    logits = [model(input_ids=row.unsqueeze(0)).logits[0] for row in ROWS]
    loss = sum(F.cross_entropy(values[:-1], row[1:], reduction="sum") for row, values in zip(ROWS, logits) if len(row) > 1)
    return torch.stack([values[-1] for values in logits]), loss


def backward(model):
    """Logits, loss, and the gradients of the adapter's parameters under our names."""
    logits, loss = forward(model)
    loss.backward()
    found = {plain(name): parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert found and all("lora_" in name or "ia3_l" in name for name in found), sorted(found)
    return logits, loss, found


def golden(make, count, merged):
    """All that is kept of one kind of adapter."""
    logits, loss, found = backward(make(torch.float64))
    assert len(found) == count, len(found)
    their_logits, their_loss, theirs = backward(make(torch.float32))
    agree(their_logits, logits, 1e-5, "logits of PEFT in f32")
    agree(their_loss, loss, 1e-5, "loss of PEFT in f32")
    for name, gradient in theirs.items():
        agree(gradient, found[name], 1e-5, f"{name} of PEFT in f32")
    kept = {f"gradient.{name}": gradient for name, gradient in found.items() if any(name.startswith(f"{one}.") for one in CHOSEN)}
    with torch.no_grad():
        biased = forward(make(torch.float64, bias=True))[0]
        weights = make(torch.float64).merge_and_unload()
    result = {"logits": logits, "loss": loss, "biased": biased, **kept}
    return result | {f"merged.{name}": weights.get_submodule(name).weight for name in merged}


made = golden(dora, 14 * 3, ["model.layers.0.self_attn.k_proj"])
with torch.no_grad():
    made["rslora"] = forward(dora(torch.float64, use_rslora=True))[0]
    made["attention"] = forward(dora(torch.float64, r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"]))[0]
write("dora", made)

made = golden(ia3, 6, ["model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"])
with torch.no_grad():
    # Every linear, of which some in each group scale what goes in.
    everywhere = dict(target_modules=TARGETS, feedforward_modules=["k_proj", "up_proj", "o_proj"])
    made["everywhere"] = forward(ia3(torch.float64, **everywhere))[0]
write("ia3", made)
