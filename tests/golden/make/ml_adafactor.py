"""Golden values of Adafactor: ten steps of transformers' own with a learning rate from outside, in f64.

Usage: OMP_NUM_THREADS=1 python tests/golden/make/ml_adafactor.py
Parameters and gradients are numbers by formula; stored are the parameters after each step (of the matrix the first rows, and all after the
last) and the second moments after the last.
"""

import torch
from ml_common import agree, numbers, write
from transformers.optimization import Adafactor

STEPS, RATE, DECAY, SHOWN = 10, 0.01, 0.1, 4
SHAPES = {"matrix": (24, 40), "vector": (50,)}
CLIP, POWER, EPS = 1.0, -0.8, 1e-30


def gradient(name, step):
    """Growing ones, so that some changes are clipped; every third row of the matrix has none in the first half, as words that don't occur."""
    values = numbers(f"adafactor {step} {name}", SHAPES[name], 0.1 + 0.2 * step)
    if name == "matrix" and step < STEPS // 2:
        values[::3] = 0.0
    return values


def by_formula():
    """The paper's algorithm 4 for the matrix, without transformers; says how many changes were clipped."""
    weight = numbers("adafactor matrix", SHAPES["matrix"], 1.0)
    rows, columns, clipped = torch.zeros(24, dtype=torch.float64), torch.zeros(40, dtype=torch.float64), 0
    for step in range(STEPS):
        slope = gradient("matrix", step)
        beta = 1 - (step + 1.0) ** POWER
        rows = beta * rows + (1 - beta) * (slope**2 + EPS).sum(1)
        columns = beta * columns + (1 - beta) * (slope**2 + EPS).sum(0)
        change = slope / (torch.outer(rows, columns) / rows.sum()).sqrt()
        size = (change**2).mean().sqrt()
        clipped += int(size > CLIP)
        weight = weight * (1 - RATE * DECAY) - RATE * change / max(1.0, size / CLIP)
    return weight, clipped


parameters = {name: torch.nn.Parameter(numbers(f"adafactor {name}", shape, 1.0)) for name, shape in SHAPES.items()}
optimizer = Adafactor(
    parameters.values(), lr=RATE, eps=(EPS, 1e-3), clip_threshold=CLIP, decay_rate=POWER, beta1=None, weight_decay=DECAY,
    scale_parameter=False, relative_step=False, warmup_init=False,
)  # fmt: skip
after = {name: [] for name in SHAPES}
for step in range(STEPS):
    for name, parameter in parameters.items():
        parameter.grad = gradient(name, step)
    optimizer.step()
    for name, parameter in parameters.items():
        after[name].append(parameter.detach().clone())
expected, clipped = by_formula()
agree(after["matrix"][-1], expected, 1e-12, "the matrix by formula")
assert 0 < clipped < STEPS, clipped
matrix, vector = (optimizer.state[parameters[name]] for name in SHAPES)
write("adafactor", {
    "matrix.steps": torch.stack([values[:SHOWN] for values in after["matrix"]]), "matrix.after": after["matrix"][-1],
    "matrix.rows": matrix["exp_avg_sq_row"], "matrix.columns": matrix["exp_avg_sq_col"],
    "vector.steps": torch.stack(after["vector"]), "vector.square": vector["exp_avg_sq"],
})  # fmt: skip
