#!/usr/bin/env python3
"""Tokens a second of sampling 64 tokens after each of 8 prompts of 64 (SmolLM2-135M, bf16) against transformers.generate.

The ratio is our rate over the peer's, prefill included, loading not; both in bf16. Also printed: one prompt, and the peer
and ours in f32. Before, both answer greedily in f32 with the same text.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import _harness as harness
from _levain import Recipe
from levain_setup.say import say

PROMPTS, LENGTH, NEW, TEMPERATURE = 8, 64, 64, 0.7
SETS = (PROMPTS, 1)
PEER_DTYPE = {"bf16": "bfloat16", "f32": "float32"}
SEED = 17
NEVER = "<reponame>"
"""A word of the tokenizer that the model has no use for in text: where it is the end, no row ends early."""


def endless(model: Path, folder: Path) -> Path:
    """The model with another token for the end: real work is compared, not luck in ending."""
    shutil.copytree(model, folder)
    tokens = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    number = next(token["id"] for token in tokens if token["content"] == NEVER)
    for name, changes in (("config.json", {"eos_token_id": number}), ("generation_config.json", {"eos_token_id": number}),
                          ("tokenizer_config.json", {"eos_token": NEVER})):  # fmt: skip
        settings = json.loads((model / name).read_text())
        (folder / name).write_text(json.dumps({**settings, **changes}))
    return folder


class Generation:
    """The same prompts on both sides."""

    def __init__(self) -> None:
        self.python = harness.PEERS.prepare()
        model, rows = harness.prepared(self.python)
        self.folder = tempfile.TemporaryDirectory(prefix="levain-bench-endless-")
        self.model = endless(model, Path(self.folder.name) / "model")
        self.lines = (rows / "text-64.jsonl").read_text().splitlines()[:PROMPTS]

    def recipe(self, dtype: str) -> Recipe:
        """Our stages: one for each number of prompts, and a greedy one."""
        sampled = {"kind": "generate", "model": "base", "max_new_tokens": NEW, "batch": PROMPTS, "seed": SEED}
        stages = {
            "base": {"kind": "load_model", "source": str(self.model), "dtype": dtype},
            "rows": {"kind": "load_dataset", "source": "rows.jsonl", "format": "text"},
            "greedy": {**sampled, "prompts": "rows", "limit": 1},
            **{f"tries{n}": {**sampled, "prompts": "rows", "limit": n, "temperature": TEMPERATURE} for n in SETS},
        }
        recipe = Recipe("bench-generate", stages)
        (recipe.folder / "rows.jsonl").write_text("\n".join(self.lines) + "\n")
        return recipe

    def ours(self, recipe: Recipe, count: int) -> float:
        """Our rate, from the first prefill to the last token.

        The log tells the rate every 0.2 s: the beginning follows from it, the end is that of the stage.
        """
        stage = f"tries{count}"
        recipe.run(stage, "--force", stage)
        harness.equal(recipe.show(stage)["summary"]["tokens"], count * NEW, "new tokens")
        events = recipe.events(stage)
        last = [event for event in events if event["event"] == "progress" and event["unit"] == "tokens"][-1]
        end = next(event for event in events if event["event"] == "finished")
        return count * NEW / ((end["at"] - last["at"]) / 1000 + last["done"] / last["rate"][0])

    def peer(self, dtype: str, sets: tuple[int, ...], temperature: float = TEMPERATURE) -> list[dict]:
        """The peer's answers to each set, in one process."""
        texts = [json.loads(line)["text"] for line in self.lines]
        job = {"model": str(self.model), "dtype": PEER_DTYPE[dtype], "new": NEW, "temperature": temperature,
               "sets": [texts[:count] for count in sets], "warm": temperature > 0}  # fmt: skip
        answers, _ = harness.peer(self.python, "_peer_generate.py", job)
        for count, answer in zip(sets, answers):
            harness.equal([count, LENGTH], answer["prompt"], "prompts and their tokens")
            harness.equal(count * NEW, answer["tokens"], "new tokens")
        return answers

    def same_text(self) -> None:
        """Greedy in f32: the same text on both sides."""
        with self.recipe("f32") as recipe:
            recipe.run("greedy")
            text = recipe.show("greedy")["rows"][0]["completion"]
        theirs = self.peer("f32", (1,), temperature=0.0)[0]["texts"][0]
        if not text or theirs != text:
            harness.different(f"greedy in f32: ours {text!r}, the peer's {theirs!r}")
        say(f"equal outputs: the greedy answer in f32 is the same text of {NEW} tokens, {len(text)} characters")

    def compare(self, dtype: str, rounds: int) -> dict[int, tuple[float, float]]:
        """The median rates of both sides for each number of prompts."""
        ours: dict[int, list[float]] = {count: [] for count in SETS}
        theirs: dict[int, list[float]] = {count: [] for count in SETS}
        with self.recipe(dtype) as recipe:
            for number in range(rounds):
                for count in SETS:
                    ours[count].append(self.ours(recipe, count))
                for count, answer in zip(SETS, self.peer(dtype, SETS)):
                    theirs[count].append(answer["tokens"] / answer["seconds"])
                say(f"  round {number + 1}, {dtype}: ours {ours[PROMPTS][-1]:.1f}, peer {theirs[PROMPTS][-1]:.1f} tokens/s")
        for count in SETS:
            say(f"{dtype}, {count} prompt{'s' if count > 1 else ''}  ours {harness.spread(ours[count], 'tokens/s')}, "
                f"transformers {harness.spread(theirs[count], 'tokens/s')}")  # fmt: skip
        return {count: (harness.median(ours[count]), harness.median(theirs[count])) for count in SETS}

    def floor(self, dtype: str) -> None:
        """The rate if only the products of the prefill and the reading of the weights took time."""
        rates, _ = harness.peer(self.python, "_peer_floor.py", {})
        weights = sum(file.stat().st_size for file in Path(self.model).glob("*.safetensors")) * (1 if dtype == "bf16" else 2)
        parameters = weights / (2 if dtype == "bf16" else 4)
        config = json.loads((self.model / "config.json").read_text())
        # Of a prompt only the last token goes through the head.
        body = parameters - config["vocab_size"] * config["hidden_size"]
        best = max(rates["f32"], rates["bf16"])
        for count in SETS:
            prefill = 2 * count * (body * LENGTH + parameters - body) / best
            # A step multiplies each weight with every row and reads it once: the slower of the two.
            step = max(2 * parameters * count / best, weights / rates["bytes"])
            rate = count * NEW / (prefill + (NEW - 1) * step)
            say(f"floor, {dtype}, {count} prompt{'s' if count > 1 else ''}: {rate:.0f} tokens/s at {best / 1e9:.0f} GFLOP/s and "
                f"{rates['bytes'] / 1e9:.1f} GB/s")  # fmt: skip


def main() -> None:
    """Equal text, then rates in both dtypes, then the floor."""
    options = harness.options(__doc__)
    say(f"generate on {harness.machine()}")
    generation = Generation()
    generation.same_text()
    half = generation.compare("bf16", options.rounds)
    whole = generation.compare("f32", options.rounds)
    generation.floor("bf16")
    ours, theirs = half[PROMPTS]
    say(f"one prompt: ratio {half[1][0] / half[1][1]:.2f}; against the peer in f32: ratio {half[1][0] / whole[1][1]:.2f}")
    say(f"against the peer in f32: ratio {ours / whole[PROMPTS][1]:.2f}; both in f32: ratio {whole[PROMPTS][0] / whole[PROMPTS][1]:.2f}")
    say(f"generate ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    harness.run(main)
