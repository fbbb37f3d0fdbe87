"""Golden values of BERT: states, pooled states, logits of masked tokens, the loss and its gradients, of transformers' BertForPreTraining in
f64; LayerNorm and GELU of torch.

Usage: OMP_NUM_THREADS=1 python tests/golden/make/ml_bert.py
Every row goes through transformers on its own, so that there is no padding; our model gets them packed. In the loss the tokens at
index % 3 == 1 of a row are hidden and are what is told. Before writing, transformers in f32, as it comes, is compared with the f64 values.
"""

import torch
from ml_common import VOCABULARY, agree, numbers, tokens, write, write_parts
from torch.nn import functional as F
from transformers import BertConfig, BertForPreTraining

LENGTHS = [13, 1, 7, 2, 24, 24]
ROWS = [tokens(f"row {index}", length) for index, length in enumerate(LENGTHS)]
MASK = 3


def weight(name, shape):
    """The formula of every weight."""
    return numbers(name, shape, 0.3) + (1.0 if name.endswith("LayerNorm.weight") else 0.0)


def bert(dtype):
    """The tiny encoder with weights by formula; no dropout, and no token whose gradient is left out as padding's."""
    shape = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=40, type_vocab_size=2, layer_norm_eps=1e-12, pad_token_id=None,
    )  # fmt: skip
    shape._attn_implementation = "sdpa" if dtype == torch.float64 else "eager"
    model = BertForPreTraining(shape).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.data = weight(name, tuple(parameter.shape)).to(dtype)
    model.tie_weights()
    return model.to(dtype)


def forward(model):
    """States, pooled states and logits of all rows as they are."""
    found = [model.bert(row.unsqueeze(0)) for row in ROWS]
    states = torch.cat([one.last_hidden_state[0] for one in found])
    logits = torch.cat([model(row.unsqueeze(0)).prediction_logits[0] for row in ROWS])
    return states, torch.cat([one.pooler_output for one in found]), logits


def loss(model):
    """The mean over the hidden tokens, and how many they are."""
    total, count = 0.0, 0
    for row in ROWS:
        hidden = torch.arange(len(row)) % 3 == 1
        if hidden.any():
            logits = model(row.masked_fill(hidden, MASK).unsqueeze(0)).prediction_logits[0]
            total = total + F.cross_entropy(logits[hidden], row[hidden], reduction="sum")
            count += int(hidden.sum())
    return total / count, count


def gradients(model, what):
    """Of every parameter, under our names; the pooler and the head for the next sentence have no part in the loss."""
    model.zero_grad()
    what.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


model, single = bert(torch.float64), bert(torch.float32)
with torch.no_grad():
    states, pooled, logits = forward(model)
    for ours, theirs, what in zip((states, pooled, logits), forward(single), ("states", "pooled states", "logits")):
        agree(theirs, ours, 1e-5, f"{what} of transformers in f32")
mean, count = loss(model)
found = gradients(model, mean)
theirs = gradients(single, loss(single)[0])
assert len(found) == len(theirs) == 42, len(found)
for name, gradient in theirs.items():
    # What attention does to all scores of a row alike changes nothing: the gradient of the keys' bias is zero but for rounding.
    if name.endswith("key.bias"):
        assert gradient.abs().max() < 1e-6 and found[name].abs().max() < 1e-14
    else:
        agree(gradient, found[name], 1e-5, f"{name} of transformers in f32")
ours = {name: gradient for name, gradient in found.items() if not name.endswith("key.bias")}

x = numbers("layer norm x", (5, 32), 2.0).requires_grad_()
norm = torch.nn.LayerNorm(32, eps=1e-12, dtype=torch.float64)
with torch.no_grad():
    norm.weight.copy_(weight("LayerNorm.weight", (32,)))
    norm.bias.copy_(numbers("LayerNorm.bias", (32,), 0.3))
y = norm(x)
(y * numbers("layer norm slope", (5, 32), 1.0)).sum().backward()
g = numbers("gelu x", (4, 9), 4.0)
write(
    "bert",
    {
        "states": states, "pooled": pooled, "logits": logits, "loss": mean, "count": torch.tensor(count),
        "layer_norm": y, "layer_norm.x": x.grad, "layer_norm.weight": norm.weight.grad, "layer_norm.bias": norm.bias.grad,
        "gelu": F.gelu(g),
    },
)  # fmt: skip
write_parts("bert_gradients", ours)
