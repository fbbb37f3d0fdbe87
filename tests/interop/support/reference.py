"""The plain loops of transformers and PEFT that our results are compared with."""

import torch
import transformers

IGNORED = -100


def padded(rows):
    """Token ids, labels and attention mask of rows, as transformers' collators pad them."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids, labels, mask = (torch.full((len(rows), longest), fill) for fill in (0, IGNORED, 0))
    for at, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[at, :length] = torch.tensor(row["input_ids"])
        trained = torch.tensor(row["trained"])
        trained[0] = False  # nothing predicts the first token
        labels[at, :length] = torch.where(trained, ids[at, :length], IGNORED)
        mask[at, :length] = 1
    return ids, labels, mask


def count(rows):
    """The number of trained tokens."""
    return sum(sum(row["trained"][1:]) for row in rows)


@torch.no_grad()
def held_out_loss(model, rows):
    """The mean of -log p over the trained tokens of all rows, and the accuracy, row by row."""
    model.eval()
    total, right = 0.0, 0
    for row in rows:
        ids, labels, mask = padded([row])
        logits = model(input_ids=ids, attention_mask=mask).logits[0, :-1].float()
        targets = labels[0, 1:]
        total += torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum").item()
        right += int((logits.argmax(-1) == targets).sum())
    return total / count(rows), right / count(rows)


def train(model, rows, steps, micro_batch, learning_rate, warmup, schedule="linear", clip=1.0, weight_decay=0.0):
    """`steps` updates on all rows; losses, gradient norms and learning rates of each."""
    model.train()
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    # (IA)³'s numbers and DoRA's lengths do not start at 0, and decay is not to pull them there.
    away = ("norm", "ia3_l", "lora_magnitude_vector")
    spared = lambda name: any(part in name for part in away) or name.endswith(".bias")  # noqa: E731
    groups = [
        {"params": [p for n, p in named if not spared(n)], "weight_decay": weight_decay},
        {"params": [p for n, p in named if spared(n)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate)
    scheduler = getattr(transformers, f"get_{schedule}_schedule_with_warmup")(optimizer, warmup, steps)
    history = []
    for _ in range(steps):
        total = 0.0
        for start in range(0, len(rows), micro_batch):
            ids, labels, mask = padded(rows[start : start + micro_batch])
            loss = model(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=count(rows)).loss
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in named], clip).item()
        history.append({"loss": total, "grad_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"]})
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    model.eval()
    return history


def compare_training(report, ours, theirs, what, tolerance, norms):
    """Step by step; `norms` is the tolerance of gradient norms."""
    report.equal(len(ours), len(theirs), f"{what}: steps")
    for index, (a, b) in enumerate(zip(ours, theirs), 1):
        report.near(a["loss"], b["loss"], tolerance, f"{what}: loss of step {index}")
        report.near(a["grad_norm"], b["grad_norm"], norms, f"{what}: gradient norm of step {index}")
        report.near(a["learning_rate"], b["learning_rate"], 1e-9, f"{what}: learning rate of step {index}")
