"""The trainings of the benchmarks `sft`, `sft-plain` and `sft-memory`: one LoRA step again and again, ours and the peer's.

Each process trains on the same 4 rows of 512 tokens in every step, so that the order of rows cannot differ; its first
step is the warm-up; where a step of the peer takes more than a minute, its warm-up is left out after the first round. The
peer starts from the adapter that ours starts from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import _harness as harness
from _floor import Cost, print_floor
from _levain import Recipe
from levain_setup.say import say

ROWS, RATE = 4, 2e-4
TOLERANCE = {"bf16": 0.02, "f32": 1e-3}
SLOW = 60.0
"""Seconds of a step."""

PEER_DTYPE = {"bf16": "bfloat16", "f32": "float32"}


@dataclass
class Side:
    """What was measured of one side: all rounds together."""

    tokens: int
    """Tokens of a step."""

    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    slow: bool = False
    """Whether a step takes so long that what only the first one does cannot be seen: later rounds then have no warm-up."""

    @property
    def step(self) -> float:
        """The median step."""
        return harness.median(self.seconds)

    def text(self) -> str:
        """A line's worth of it."""
        return f"step {harness.spread(self.seconds)}, {self.tokens / self.step:.0f} tokens/s, peak {max(self.memory) / 1e9:.2f} GB"


class Training:
    """The same training on both sides."""

    def __init__(self, steps: int, quick: bool = False) -> None:
        self.python = harness.PEERS.prepare()
        self.model, rows = harness.prepared(self.python)
        # A step in f32 is short where bf16 is slow: one round of it, but of twice the steps.
        self.steps = {"bf16": 1 + steps, "f32": 1 + steps * (1 if quick else 2)}
        self.recipes: dict[str, Recipe] = {}
        # A training adds the end of text to each row.
        file, self.length = ("text-64.jsonl", 65) if quick else ("text-512.jsonl", 512)
        self.tokens, self.trained = ROWS * self.length, ROWS * (self.length - 1)
        self.text = (rows / file).read_text().splitlines()[:ROWS]

    def recipe(self, dtype: str) -> Recipe:
        """Our side's recipe, with everything before the training done, and its inputs written for the peer."""
        if dtype not in self.recipes:
            stages = {
                "base": {"kind": "load_model", "source": str(self.model), "dtype": dtype},
                "rows": {"kind": "load_dataset", "source": "rows.jsonl", "format": "text"},
                "thin": {"kind": "lora", "model": "base", "r": 8, "alpha": 16, "targets": "all-linear"},
                "tuned": {
                    "kind": "sft", "model": "thin", "data": "rows", "learning_rate": RATE, "schedule": "constant", "warmup": 0,
                    "max_steps": self.steps[dtype], "batch": ROWS, "micro_batch": ROWS, "max_length": self.length,
                    # Within a training of minutes nothing is to be written.
                    "snapshot_seconds": 86400,
                },
            }  # fmt: skip
            recipe = self.recipes[dtype] = Recipe("bench-sft", stages)
            (recipe.folder / "rows.jsonl").write_text("\n".join(self.text) + "\n")
            recipe.run("thin")
            harness.measured(recipe.command("export", "thin", recipe.folder / "adapter", "--format", "peft"))
        return self.recipes[dtype]

    def ours(self, dtype: str, side: Side) -> None:
        """One training of ours."""
        recipe = self.recipe(dtype)
        side.memory.append(recipe.run("tuned", "--force", "tuned"))
        steps = recipe.show("tuned.metrics")["metrics"]["steps"]
        harness.equal([step["tokens"] for step in steps], [self.tokens] * self.steps[dtype], "tokens of each step")
        harness.equal([step["trained_tokens"] for step in steps], [self.trained] * self.steps[dtype], "trained tokens of each step")
        side.losses = [step["loss"] for step in steps]
        # The log says tokens a second of each step, not seconds.
        speeds = [event["values"]["tokens_per_second"] for event in recipe.events("tuned") if event["event"] == "metrics"]
        side.seconds += [self.tokens / speed for speed in speeds[1:]]

    def rows_for_peer(self, recipe: Recipe) -> Path:
        """The token ids that ours trained on, which all are trained but the first of each row."""
        path = recipe.folder / "tokens.json"
        if not path.exists():
            rows = recipe.show("tuned", "--tokens", "--rows", ROWS)["rows"]
            harness.equal([len(row["input_ids"]) for row in rows], [self.length] * ROWS, "tokens of each row")
            path.write_text(json.dumps([{"input_ids": row["input_ids"], "trained": row["trained"]} for row in rows]))
        return path

    def peer(self, trainer: str, dtype: str, side: Side, *, autocast: bool = False, compiled: bool = False, **environment: str) -> None:
        """One training of the peer's, and the proof that it did what ours did."""
        recipe = self.recipe(dtype)
        steps = 1 if side.slow else self.steps[dtype]
        job = {
            "trainer": trainer, "dtype": PEER_DTYPE[dtype], "autocast": autocast, "compile": compiled, "model": str(self.model),
            "adapter": str(recipe.folder / "adapter"), "rows": str(self.rows_for_peer(recipe)), "folder": str(recipe.folder / "trl"),
            "steps": steps, "learning_rate": RATE,
        }  # fmt: skip
        answer, memory = harness.peer(self.python, "_peer_sft.py", job, **environment)
        harness.equal([self.tokens] * steps, answer["tokens"], "tokens of each step")
        harness.equal(self.trained, answer["trained"], "trained tokens of a step")
        side.losses = answer["losses"]
        side.memory.append(memory)
        side.seconds += answer["seconds"] if side.slow else answer["seconds"][1:]
        side.slow = side.slow or answer["seconds"][0] > SLOW

    def compare(self, trainer: str, name: str, dtype: str, rounds: int) -> tuple[Side, Side]:
        """Rounds of both sides alternately (in f32 one); the losses of every round are compared."""
        ours, theirs = Side(self.tokens), Side(self.tokens)
        for number in range(rounds if dtype == "bf16" else 1):
            self.ours(dtype, ours)
            self.peer(trainer, dtype, theirs)
            harness.near(ours.losses[: len(theirs.losses)], theirs.losses, TOLERANCE[dtype], f"{dtype} loss of step")
            say(f"  round {number + 1}, {dtype}: ours {ours.seconds[-1]:.1f} s, {name} {theirs.seconds[-1]:.1f} s a step")
        say(f"{dtype}  ours: {ours.text()}")
        say(f"{dtype}  {name}: {theirs.text()}")
        pairs = "; ".join(f"{a:.4f} and {b:.4f}" for a, b in zip(ours.losses, theirs.losses))
        say(f"{dtype}  equal work: {self.tokens} tokens a step, {self.trained} trained; losses ours and theirs: {pairs}")
        return ours, theirs

    def floor(self, **sides: float) -> None:
        """Print what the products alone would take at this machine's best rates, and how near each side is."""
        cost = Cost.of(self.model, rank=8)
        # Both passes of everything, for every token; attention sees half a row at the mean.
        count = self.tokens * (cost.trained_adapter(self.length / 2) + 2 * cost.head)
        print_floor(self.python, count, "step", sides)

    def close(self) -> None:
        """Remove the recipes."""
        for recipe in self.recipes.values():
            recipe.__exit__()
