"""Golden values of the whole model: logits, loss and gradients of every weight of transformers' LlamaForCausalLM in f64.

Usage: OMP_NUM_THREADS=1 python tests/golden/make/ml_llama.py
Every row goes through transformers on its own; our model gets them packed. Before writing, transformers in f32, as it comes,
is compared with the f64 values.
"""

import torch
from ml_common import agree, llama, tokens, write, write_parts
from torch.nn import functional as F

LENGTHS = [13, 1, 7, 2, 24]
ROWS = [tokens(f"row {index}", length) for index, length in enumerate(LENGTHS)]
"""Token ids; those at index % 3 != 2 of a row (but its first) are trained."""
VARIANTS = {
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
    "bias": {"attention_bias": True, "mlp_bias": True},
    "head_dim": {"head_dim": 16},
    "heads": {"num_key_value_heads": 4},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
}  # fmt: skip


def trained(row):
    """Which tokens count."""
    return torch.tensor([at > 0 and at % 3 != 2 for at in range(len(row))])


def forward(model):
    """Logits of all rows, and the mean loss over the trained tokens of all rows."""
    logits = [model(row.unsqueeze(0)).logits[0] for row in ROWS]
    total, count = 0.0, 0
    for row, values in zip(ROWS, logits):
        mask = trained(row)
        if mask.any():
            total = total + F.cross_entropy(values[:-1][mask[1:]], row[1:][mask[1:]], reduction="sum")
            count += int(mask.sum())
    return torch.cat(logits), total / count, count


for name, tied in [("tied", True), ("untied", False)]:
    model = llama(torch.float64, tie_word_embeddings=tied)
    logits, loss, count = forward(model)
    loss.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}

    single = llama(torch.float32, tie_word_embeddings=tied)
    their_logits, their_loss, _ = forward(single)
    agree(their_logits, logits, 5e-6, f"{name} logits of transformers in f32")
    agree(their_loss, loss, 5e-6, f"{name} loss of transformers in f32")
    their_loss.backward()
    for key, parameter in single.named_parameters():
        agree(parameter.grad, gradients[key], 1e-5, f"{name} {key} of transformers in f32")
    # The loss as transformers takes it from labels, of the longest row.
    labels = torch.where(trained(ROWS[-1]), ROWS[-1], -100)
    own = single(ROWS[-1].unsqueeze(0), labels=labels.unsqueeze(0)).loss
    write(f"llama_{name}", {"logits": logits, "loss": loss, "count": torch.tensor(count), "labels_loss": own.double()})
    write_parts(f"llama_{name}_gradients", gradients)

with torch.no_grad():
    write("llama_variants", {
        name: torch.cat([llama(torch.float64, **changes)(row.unsqueeze(0)).logits[0] for row in [ROWS[0], ROWS[2]]])
        for name, changes in VARIANTS.items()
    })  # fmt: skip
    # Weights rounded to bf16, everything else in f64: what a bf16 model is measured against.
    model = llama(torch.float64)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().double()
    write("llama_bf16", {"logits": forward(model)[0].float(), "loss": forward(model)[1]})
