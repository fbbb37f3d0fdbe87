"""Golden values of the update: ten steps of torch's AdamW with each of transformers' schedules, clipping and decay, in f64.

Usage: OMP_NUM_THREADS=1 python tests/golden/make/ml_optimizer.py
Parameters and gradients are numbers by formula; stored are the learning rate, the norm before clipping, and the parameters
after each step.
"""

import torch
import transformers
from ml_common import numbers, write

STEPS, WARMUP, PEAK = 10, 3, 0.05
SHAPES = {"norm.weight": (5,), "proj.weight": (4, 3)}
"""In the order of the names; weights of norms are not decayed."""
CASES = {
    "constant": dict(schedule="constant", clip=1.0, weight_decay=0.1),
    "linear": dict(schedule="linear", clip=1.0, weight_decay=0.1),
    "cosine": dict(schedule="cosine", clip=1.0, weight_decay=0.1),
    "unclipped": dict(schedule="linear", clip=None, weight_decay=0.0),
    "other_betas": dict(schedule="cosine", clip=2.5, weight_decay=0.3, betas=(0.8, 0.95), eps=1e-4),
}


def scheduler(name, optimizer):
    """transformers' own."""
    make = getattr(transformers, f"get_{name}_schedule_with_warmup")
    steps = {} if name == "constant" else {"num_training_steps": STEPS}
    return make(optimizer, num_warmup_steps=WARMUP, **steps)


golden = {}
for name, case in CASES.items():
    parameters = {key: torch.nn.Parameter(numbers(key, shape, 1.0)) for key, shape in SHAPES.items()}
    groups = [
        {"params": [parameters["proj.weight"]], "weight_decay": case["weight_decay"]},
        {"params": [parameters["norm.weight"]], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=case.get("betas", (0.9, 0.999)), eps=case.get("eps", 1e-8))
    schedule = scheduler(case["schedule"], optimizer)
    rates, norms, after = [], [], {key: [] for key in SHAPES}
    for step in range(STEPS):
        for key, parameter in parameters.items():
            # Some steps are clipped at 1.0 and some are not.
            parameter.grad = numbers(f"gradient {step} {key}", SHAPES[key], 0.1 + 0.2 * step)
        limit = case["clip"] if case["clip"] is not None else float("inf")
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), limit).item())
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
        for key, parameter in parameters.items():
            after[key].append(parameter.detach().clone())
    assert min(norms) < 1.0 < max(norms)
    golden[f"{name}.rates"] = torch.tensor(rates, dtype=torch.float64)
    golden[f"{name}.norms"] = torch.tensor(norms, dtype=torch.float64)
    for key, values in after.items():
        golden[f"{name}.{key}"] = torch.stack(values)
write("optimizer", golden)
