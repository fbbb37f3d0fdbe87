"""Golden values of classifiers: transformers' LlamaForSequenceClassification on the tiny Llama, and multilayer perceptrons of torch on mean states.

Usage: OMP_NUM_THREADS=1 python tests/golden/make/ml_classifier.py
Losses are sums over the rows, which went through one by one; gradients are of these sums.
"""

import torch
from ml_common import agree, config, llama, tokens, weight, write
from torch import nn
from transformers import LlamaForSequenceClassification

ROWS = [tokens(f"row {index}", length) for index, length in enumerate([13, 1, 7, 2, 24])]
CLASSES = [2, 0, 1, 1, 2]
NUMBERS = [0.5, -1.25, 3.0, 0.0, 7.5]
CHOSEN = [
    "score.weight", "model.embed_tokens.weight", "model.norm.weight", "model.layers.0.self_attn.k_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
]
HIDDEN = [6, 5]
ACTIVATIONS = {"relu": nn.ReLU(), "gelu": nn.GELU(), "tanh": nn.Tanh()}


def filled(model, dtype):
    """Weights by formula."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.data = weight(name, tuple(parameter.shape)).to(dtype)
    return model.to(dtype)


def classifier(dtype, labels, problem):
    """transformers' classifier; `llama` has made its norms exact in f64."""
    llama(dtype)
    shape = config(num_labels=labels, problem_type=problem)
    shape._attn_implementation = "sdpa" if dtype == torch.float64 else "eager"
    return filled(LlamaForSequenceClassification(shape).eval(), dtype)


def kept(model):
    """Gradients of the chosen parameters."""
    found = dict(model.named_parameters())
    return {name: found[name].grad for name in CHOSEN}


def of_theirs(dtype, labels, problem, targets):
    """Logits of each row, the sum of their losses, gradients."""
    model = classifier(dtype, labels, problem)
    kind = torch.int64 if labels > 1 else dtype
    found = [model(input_ids=row.unsqueeze(0), labels=torch.tensor([target], dtype=kind)) for row, target in zip(ROWS, targets)]
    loss = sum(one.loss for one in found)
    loss.backward()
    return torch.cat([one.logits for one in found]), loss, kept(model)


class Perceptron(nn.Module):
    """Layers with an activation between them, under our names."""

    def __init__(self, widths, activation):
        super().__init__()
        self.head = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.activation = activation

    def forward(self, x):
        for index, layer in enumerate(self.head):
            x = layer(self.activation(x) if index else x)
        return x


def of_perceptron(dtype, activation):
    """Mean states, logits, loss and gradients of the perceptron and of the last norm."""
    model = llama(dtype).model
    head = filled(Perceptron([32, *HIDDEN, 3], ACTIVATIONS[activation]), dtype)
    vectors = torch.cat([model(input_ids=row.unsqueeze(0)).last_hidden_state.mean(1) for row in ROWS])
    logits = head(vectors)
    loss = nn.functional.cross_entropy(logits, torch.tensor(CLASSES), reduction="sum")
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in head.named_parameters()}
    gradients["model.norm.weight"] = model.norm.weight.grad
    return vectors, logits, loss, gradients


def add(result, name, logits, loss, gradients):
    """What is kept of a case."""
    result[f"{name}.logits"], result[f"{name}.loss"] = logits, loss
    result.update({f"{name}.gradient.{key}": value for key, value in gradients.items()})


made = {}
for name, labels, problem, targets in [
    ("classes", 3, "single_label_classification", CLASSES),
    ("number", 1, "regression", NUMBERS),
]:
    logits, loss, gradients = of_theirs(torch.float64, labels, problem, targets)
    theirs = of_theirs(torch.float32, labels, problem, targets)
    agree(theirs[0], logits, 1e-5, f"{name}: logits in f32")
    agree(theirs[1], loss, 1e-5, f"{name}: loss in f32")
    for key, value in theirs[2].items():
        agree(value, gradients[key], 1e-5, f"{name}: {key} in f32")
    add(made, name, logits, loss, gradients)
for activation in ACTIVATIONS:
    vectors, logits, loss, gradients = of_perceptron(torch.float64, activation)
    theirs = of_perceptron(torch.float32, activation)
    agree(theirs[1], logits, 1e-5, f"{activation}: logits in f32")
    for key, value in theirs[3].items():
        agree(value, gradients[key], 1e-5, f"{activation}: {key} in f32")
    add(made, activation, logits, loss, gradients)
made["vectors"] = vectors
made["normalized"] = nn.functional.normalize(vectors, dim=1)
write("classifier", made)
