"""Golden values of bottleneck adapters: logits and gradients of AdapterHub's package `adapters` on the tiny Llama, in Houlsby's form and in
Pfeiffer's, and folders that the package saved.

Usage: OMP_NUM_THREADS=1 PYTHONPATH=OVERLAY python tests/golden/make/ml_bottleneck.py
Pinned: torch 2.13.0, adapters 1.3.0, transformers 4.57.6 (which this version of adapters asks for), safetensors 0.8.0, numpy 2.4.6.
The other scripts need another transformers, so OVERLAY is a folder of its own over their environment, the one that
`python3 scripts/interop.py model_bottleneck --prepare` makes.
Logits are those of the last tokens of the rows.
"""

import json
import shutil
import tempfile
from pathlib import Path

import adapters
import ml_common
import torch
from adapters import DoubleSeqBnConfig, SeqBnConfig
from ml_common import DATA, LIMIT, agree, certificate, llama, numbers, tokens, write
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

ml_common.PINNED = {"torch": "2.13.0", "adapters": "1.3.0", "transformers": "4.57.6", "safetensors": "0.8.0", "numpy": "2.4.6"}
ROWS = [tokens(f"row {index}", length) for index, length in enumerate([13, 1, 7, 2, 24])]
NAME = "bottleneck"
FORMS = {"houlsby": DoubleSeqBnConfig, "pfeiffer": SeqBnConfig}
PLACES = {"houlsby": 2, "pfeiffer": 1}


def ours(name):
    """Whether a parameter is the adapter's."""
    return f".adapters.{NAME}." in name


def adapted(form, dtype, **changes):
    """The tiny model with an adapter by formula, everything in it away from zero."""
    model = llama(dtype)
    adapters.init(model)
    model.add_adapter(NAME, config=FORMS[form](**{"reduction_factor": 8, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ours(name):
                parameter.data = numbers(name, tuple(parameter.shape), 0.2).to(dtype)
    model.train_adapter(NAME)
    assert model.active_adapters is not None
    return model.eval()


def forward(model):
    """Logits of each row's last token, and the sum of the losses of every token but the first of a row."""
    logits = [model(input_ids=row.unsqueeze(0), use_cache=False).logits[0] for row in ROWS]
    loss = sum(F.cross_entropy(values[:-1], row[1:], reduction="sum") for row, values in zip(ROWS, logits) if len(row) > 1)
    return torch.stack([values[-1] for values in logits]), loss


def backward(model):
    """Logits, loss, and the gradients of the adapter's parameters."""
    logits, loss = forward(model)
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert found and all(ours(name) for name in found), sorted(found)
    return logits, loss, found


def saved(form):
    """The folder that the package itself saves, and what the model that loads it computes."""
    folder = DATA / "bottleneck" / form
    with tempfile.TemporaryDirectory() as temporary:
        adapted(form, torch.float32).save_adapter(temporary, NAME, with_head=False, use_safetensors=True)
        assert sorted(path.name for path in Path(temporary).iterdir()) == ["adapter.safetensors", "adapter_config.json"]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(temporary) / "adapter_config.json", folder)
        stored = load_file(Path(temporary) / "adapter.safetensors")
        # The same tensors as the package wrote, with the certificate in the header.
        save_file(stored, folder / "adapter.safetensors", metadata={"format": "pt", **certificate()})
    for path in folder.iterdir():
        path.chmod(0o644)
        assert path.stat().st_size <= LIMIT
    assert len(stored) == 2 * PLACES[form] * 4
    assert json.loads((folder / "adapter_config.json").read_text())["name"] == NAME
    again = llama(torch.float32)
    adapters.init(again)
    loaded = again.load_adapter(str(folder), with_head=False, set_active=True, use_safetensors=True)
    assert loaded == NAME
    with torch.no_grad():
        return forward(again.eval())[0]


made = {}
with torch.no_grad():
    base = llama(torch.float64)
    made["base"] = forward(base)[0]
for form in FORMS:
    logits, loss, found = backward(adapted(form, torch.float64))
    assert len(found) == 2 * PLACES[form] * 4, len(found)
    their_logits, their_loss, theirs = backward(adapted(form, torch.float32))
    agree(their_logits, logits, 1e-5, f"logits of {form} in f32")
    agree(their_loss, loss, 1e-5, f"loss of {form} in f32")
    for name, gradient in theirs.items():
        agree(gradient, found[name], 1e-5, f"{form} {name} in f32")
    assert ml_common.relative(logits, made["base"]) > 0.05
    made |= {f"{form}.logits": logits, f"{form}.loss": loss}
    made |= {f"{form}.gradient.{name}": gradient for name, gradient in found.items()}
    with torch.no_grad():
        for word in ["relu", "swish", "gelu", "gelu_new", "tanh"]:
            made[f"{form}.{word}"] = forward(adapted(form, torch.float64, non_linearity=word))[0]
        # 32 // 9 = 3 numbers.
        made[f"{form}.scaled"] = forward(adapted(form, torch.float64, scaling=0.5, reduction_factor=9))[0]
    agree(saved(form), logits, 1e-5, f"the folder of {form}")
with torch.no_grad():
    # After attention alone, on the stream.
    made["attention"] = forward(adapted("pfeiffer", torch.float64, mh_adapter=True, output_adapter=False))[0]
write("bottleneck", made)
