"""Golden values of LoRA: PEFT's logits and gradients on the tiny Llama, and an adapter that PEFT saved.

Usage: OMP_NUM_THREADS=1 python tests/golden/make/ml_lora.py
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from ml_common import DATA, LIMIT, agree, certificate, llama, numbers, tokens, write_parts
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

ROWS = [tokens(f"row {index}", length) for index, length in enumerate([13, 1, 7, 2, 24])]


def adapted(dtype, **changes):
    """The tiny model with an adapter by formula, A and B both away from zero."""
    settings = LoraConfig(**{**dict(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"), **changes})
    model = get_peft_model(llama(dtype), settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                plain = name.removeprefix("base_model.model.").replace(".default", "")
                parameter.data = numbers(plain, tuple(parameter.shape), 0.2).to(dtype)
    return model.eval()


def forward(model):
    """Logits of all rows, and the sum of the losses of every token but the first of a row."""
    logits = [model(input_ids=row.unsqueeze(0)).logits[0] for row in ROWS]
    loss = sum(F.cross_entropy(values[:-1], row[1:], reduction="sum") for row, values in zip(ROWS, logits) if len(row) > 1)
    return torch.cat(logits), loss


def gradients(model):
    """Gradients of A and B under our parameter names."""
    return {
        name.removeprefix("base_model.model.").replace(".default", ""): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


model = adapted(torch.float64)
logits, loss = forward(model)
loss.backward()
found = gradients(model)
assert len(found) == 28 and not any("lm_head" in name or "embed" in name for name in found), sorted(found)
with model.disable_adapter():
    base, _ = forward(model)
single = adapted(torch.float32)
their_logits, their_loss = forward(single)
agree(their_logits, logits, 1e-5, "logits of PEFT in f32")
their_loss.backward()
for name, gradient in gradients(single).items():
    agree(gradient, found[name], 1e-5, f"{name} of PEFT in f32")
merged = adapted(torch.float64).merge_and_unload()
q_proj = "model.layers.1.self_attn.q_proj"
with torch.no_grad():
    rslora, _ = forward(adapted(torch.float64, use_rslora=True))
    attention, _ = forward(adapted(torch.float64, r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"]))
write_parts("lora", {
    "logits": logits, "loss": loss, "base": base, "rslora": rslora, "attention": attention,
    "merged": merged.get_submodule(q_proj).weight, **{f"gradient.{name}": value for name, value in found.items()},
})  # fmt: skip

# The files of PEFT itself, and what the f32 model that loads them computes.
folder = DATA / "adapter"
with tempfile.TemporaryDirectory() as temporary:
    saved = adapted(torch.float32)
    saved.save_pretrained(temporary)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(temporary) / "adapter_config.json", folder)
    stored = load_file(Path(temporary) / "adapter_model.safetensors")
    # The same tensors and header as PEFT wrote, with the certificate added.
    save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt", **certificate()})
    (folder / "adapter_model.safetensors").chmod(0o644)
    assert (folder / "adapter_model.safetensors").stat().st_size <= LIMIT
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["target_modules"] = sorted(settings["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True))
again = PeftModel.from_pretrained(llama(torch.float32), folder).eval()
with torch.no_grad():
    agree(forward(again)[0], logits, 1e-5, "the adapter that was loaded")
