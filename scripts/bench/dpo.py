#!/usr/bin/env python3
"""Pairs a second of DPO (LoRA on SmolLM2-135M, 4 pairs of 96 + 96 tokens a step, bf16) against TRL's DPOTrainer.

A pair costs its part of a training step and of the reference's forward pass, on either side: ours takes the reference's
log-probabilities in a stage before the training, TRL either with every step (its default) or beforehand
(`precompute_ref_log_probs`). Both forms are printed; the ratio is our rate over that of TRL's faster form, in bf16. Also
printed: the peak memory of both, the peer in f32, ours in f32.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import _harness as harness
from _floor import Cost, print_floor
from _levain import Recipe
from levain_setup.say import say

PAIRS, RATE, BETA = 4, 2e-5, 0.1
TOLERANCE = {"bf16": 0.02, "f32": 1e-3}
PEER_DTYPE = {"bf16": "bfloat16", "f32": "float32"}
REFERENCE = "looked › reference"
FORMS = {"TRL": False, "TRL, reference beforehand": True}
"""The peer's forms, and whether the reference comes before the training."""


@dataclass
class Side:
    """What was measured of one side: all rounds together."""

    steps: list[float] = field(default_factory=list)
    """Seconds of training steps."""

    references: list[float] = field(default_factory=list)
    """Seconds of the reference's pass over the pairs of a step, where it is one of its own."""

    memory: list[int] = field(default_factory=list)
    numbers: dict[str, list[float]] = field(default_factory=dict)
    """What the last round's steps logged."""

    @property
    def rate(self) -> float:
        """Pairs a second."""
        return PAIRS / (harness.median(self.steps) + (harness.median(self.references) if self.references else 0.0))

    def text(self) -> str:
        """A line's worth of it."""
        reference = f" + reference {harness.spread(self.references)}" if self.references else ", reference included"
        return f"{self.rate:.3f} pairs/s: step {harness.spread(self.steps)}{reference}; peak {max(self.memory) / 1e9:.2f} GB"


class Training:
    """The same training on both sides."""

    def __init__(self, steps: int, quick: bool) -> None:
        self.python = harness.PEERS.prepare()
        self.model, rows = harness.prepared(self.python)
        self.length = 16 if quick else 96
        """Tokens of a prompt, and of a completion with the end of text."""
        self.tokens, self.answers = PAIRS * 2 * 2 * self.length, PAIRS * 2 * self.length
        # Ours computes the prompt of a pair once.
        self.once = self.tokens - PAIRS * self.length
        # A step in f32 is short where bf16 is slow: one round of it, but of twice the steps.
        self.steps = {"bf16": 1 + steps, "f32": 1 + steps * (1 if quick else 2)}
        self.lines = (rows / f"pairs-{self.length}.jsonl").read_text().splitlines()
        self.recipes: dict[str, Recipe] = {}

    def recipe(self, dtype: str) -> Recipe:
        """Our side's recipe, with everything before the training done, and its inputs written for the peer."""
        if dtype not in self.recipes:
            stages = {
                "base": {"kind": "load_model", "source": str(self.model), "dtype": dtype},
                "pairs": {"kind": "load_dataset", "source": "pairs.jsonl", "format": "preference"},
                "more": {"kind": "load_dataset", "source": "more.jsonl", "format": "preference"},
                "thin": {"kind": "lora", "model": "base", "r": 8, "alpha": 16, "targets": "all-linear"},
                "tuned": {
                    "kind": "dpo", "model": "thin", "data": "pairs", "beta": BETA, "learning_rate": RATE, "schedule": "constant",
                    "warmup": 0, "max_steps": self.steps[dtype], "batch": PAIRS, "micro_batch": PAIRS, "max_length": 2 * self.length,
                    # Within a training of minutes nothing is to be written.
                    "snapshot_seconds": 86400,
                },
            }  # fmt: skip
            stages["looked"] = {**stages["tuned"], "data": "more"}
            recipe = self.recipes[dtype] = Recipe("bench-dpo", stages)
            (recipe.folder / "pairs.jsonl").write_text("\n".join(self.lines[:PAIRS]) + "\n")
            (recipe.folder / "more.jsonl").write_text("\n".join(self.lines) + "\n")
            recipe.run("thin")
            harness.measured(recipe.command("export", "thin", recipe.folder / "adapter", "--format", "peft"))
        return self.recipes[dtype]

    def ours(self, dtype: str, side: Side) -> None:
        """One training of ours with its reference."""
        recipe = self.recipe(dtype)
        side.memory.append(recipe.run("tuned", "--force", "tuned/reference", "--force", "tuned"))
        steps = recipe.show("tuned.metrics")["metrics"]["steps"]
        harness.equal([(step["tokens"], step["rows"]) for step in steps], [(self.once, PAIRS)] * self.steps[dtype], "tokens and pairs of each step")
        side.numbers = {name: [step[name] for step in steps] for name in ("loss", "logps/chosen", "logps/rejected")}
        # The log says tokens a second of each step, not seconds; of the reference those of its beginning up to now.
        speeds = [event["values"]["tokens_per_second"] for event in recipe.events("tuned") if event["event"] == "metrics"]
        side.steps += [self.once / speed for speed in speeds[1:]]
        side.references.append(self.reference(recipe))

    def reference(self, recipe: Recipe) -> float:
        """Seconds of the reference's pass over as many pairs as a step has, after a first pass that warms it up."""
        recipe.run("looked/reference", "--force", "looked/reference")
        looks = [event for event in recipe.events(REFERENCE) if event["event"] == "progress"]
        harness.equal([look["done"] for look in looks], [2 * PAIRS, 4 * PAIRS], "completions that the reference looked at")
        harness.equal(recipe.show("looked/reference")["summary"]["tokens"], 2 * self.answers, "tokens that the reference looked at")
        # The rate is that of everything up to now.
        first, both = (self.once * looks_so_far / look["rate"][0] for looks_so_far, look in zip((1, 2), looks))
        return both - first

    def pairs_for_peer(self, recipe: Recipe) -> Path:
        """The token ids that ours trained on."""
        path = recipe.folder / "tokens.json"
        if not path.exists():
            rows = recipe.show("tuned", "--tokens", "--rows", 2 * PAIRS)["rows"]
            lengths = [(row["trained"].count(False), row["trained"].count(True)) for row in rows]
            harness.equal(lengths, [(self.length, self.length)] * (2 * PAIRS), "tokens of each prompt and completion")
            ids = [row["input_ids"] for row in rows]
            pairs = [
                {"prompt_ids": chosen[: self.length], "chosen_ids": chosen[self.length :], "rejected_ids": rejected[self.length :]}
                for chosen, rejected in zip(ids[::2], ids[1::2])
            ]
            path.write_text(json.dumps(pairs))
        return path

    def peer(self, dtype: str, beforehand: bool, side: Side) -> None:
        """One training of the peer's, and the proof that it did what ours did."""
        recipe = self.recipe(dtype)
        job = {
            "dtype": PEER_DTYPE[dtype], "beforehand": beforehand, "model": str(self.model), "adapter": str(recipe.folder / "adapter"),
            "pairs": str(self.pairs_for_peer(recipe)), "folder": str(recipe.folder / "trl"), "steps": self.steps[dtype],
            "learning_rate": RATE, "beta": BETA,
        }  # fmt: skip
        answer, memory = harness.peer(self.python, "_peer_dpo.py", job)
        harness.equal([[self.tokens, self.answers]] * self.steps[dtype], answer["tokens"], "tokens of each step, and of its completions")
        side.memory.append(memory)
        side.steps += answer["seconds"][1:]
        side.references += answer["references"]
        side.numbers = answer["numbers"]

    def compare(self, dtype: str, rounds: int) -> tuple[Side, dict[str, Side]]:
        """Rounds of both sides alternately (in f32 one); what every round's steps logged is compared."""
        ours, theirs = Side(), {name: Side() for name in FORMS}
        for number in range(rounds if dtype == "bf16" else 1):
            self.ours(dtype, ours)
            for name, beforehand in FORMS.items():
                self.peer(dtype, beforehand, theirs[name])
                for measure, values in ours.numbers.items():
                    harness.near(values, theirs[name].numbers[measure], TOLERANCE[dtype], f"{dtype}, {name}: {measure} of step")
            times = ", ".join(f"{name} {side.steps[-1]:.1f} s" for name, side in theirs.items())
            say(f"  round {number + 1}, {dtype}: a step of ours {ours.steps[-1]:.1f} s, {times}")
        for name, side in {"ours": ours, **theirs}.items():
            say(f"{dtype}  {name}: {side.text()}")
        say(f"{dtype}  equal work: {self.tokens} tokens a step ({self.once} where prompts are computed once), {self.answers} of them of completions; losses, and log-probabilities of the "
            "chosen completions:")  # fmt: skip
        for name, side in {"ours": ours, **theirs}.items():
            numbers = [", ".join(f"{value:.4f}" for value in side.numbers[measure]) for measure in ("loss", "logps/chosen")]
            say(f"{dtype}    {name}: {'; '.join(numbers)}")
        return ours, theirs

    def floor(self, **sides: Side) -> None:
        """What the products of a step and of the reference's pass take; logits are needed of the completions' tokens only."""
        cost = Cost.of(self.model, rank=8)
        seen = self.length  # half of a row, at the mean
        body = cost.forward(seen) + cost.trained_adapter(seen)
        count = self.once * body + self.answers * 3 * cost.head
        print_floor(self.python, count, "step with its reference", {name: PAIRS / side.rate for name, side in sides.items()})

    def close(self) -> None:
        """Remove the recipes."""
        for recipe in self.recipes.values():
            recipe.__exit__()


def faster(forms: dict[str, Side]) -> tuple[str, Side]:
    """The peer's form with the higher rate."""
    return max(forms.items(), key=lambda item: item[1].rate)


def main() -> None:
    """Both dtypes, then the floor."""
    options = harness.options(__doc__, steps=2)
    say(f"dpo on {harness.machine()}")
    training = Training(options.steps, options.quick)
    try:
        ours, forms = training.compare("bf16", options.rounds)
        ours32, forms32 = training.compare("f32", options.rounds)
        (name, theirs), (name32, theirs32) = faster(forms), faster(forms32)
        training.floor(**{"ours in bf16": ours, "ours in f32": ours32, f"{name32} in f32": theirs32})
    finally:
        training.close()
    for own, other, which in ((ours, forms, "bf16"), (ours32, forms32, "f32")):
        least = min(max(side.memory) for side in other.values())
        say(f"memory, {which}: ours {max(own.memory) / 1e9:.2f} GB, the peer's smaller form {least / 1e9:.2f} GB: ratio {least / max(own.memory):.2f}")
    say(f"against the peer in f32 ({name32}): ratio {ours.rate / theirs32.rate:.2f}")
    say(f"both in f32: ratio {ours32.rate / theirs32.rate:.2f}")
    say(f"the peer's faster form in bf16: {name}")
    say(f"dpo ratio {ours.rate / theirs.rate:.2f}")


if __name__ == "__main__":
    harness.run(main)
