#!/usr/bin/env python3
"""Seconds of a batch of PPO (8 episodes of 64 + 53 tokens, 4 epochs, LoRA policy, full critic and reward model) against TRL 1.12.

TRL 1.12 was the last with `PPOTrainer`. The ratio is its median batch over ours, both in bf16. Also printed: the peak memory
of both, the peer in f32, ours in f32.

The two sides sample other tokens, so that their losses cannot be compared number by number. What is compared: tokens of
prompts and completions, updates of the optimizer, that the first epoch of the first batch has a policy loss and a KL of 0 (its
ratios are 1, its advantages are centred, its adapter changes nothing), and the entropy of what was sampled, which is a mean
over 424 tokens. Our judge reads a completion with its end of text: one token more.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import _harness as harness
from _floor import Cost, rates
from _levain import Recipe
from generate import endless
from levain_setup.environment import Environment
from levain_setup.say import say

EPISODES, PROMPT, RATE, TEMPERATURE, SEED = 8, 64, 1e-5, 0.7, 17
PEER_DTYPE = {"bf16": "bfloat16", "f32": "float32"}
ZERO = {"bf16": {"ours": 0.02, "theirs": 0.1}, "f32": {"ours": 1e-3, "theirs": 1e-3}}
"""What counts as a policy loss of 0. TRL's old log-probabilities come out of the sampling, whose rounding in bf16 is another one."""

ZERO_KL = {"bf16": 1.0, "f32": 1e-2}
"""What counts as a KL of 0, of a whole completion."""

ENTROPY = 0.3
"""How far the entropies may be apart, relative to the larger one."""

PEERS = Environment(
    requirements=harness.FOLDER / "ppo-requirements.txt",
    variable="LEVAIN_BENCH_PPO_VENV",
    target="make bench-ppo",
    cost="with torch: about 3 GB to fetch, 6 GB on disk, minutes",
    disk=9_000_000_000,
)


@dataclass
class Side:
    """What was measured of one side: all rounds together."""

    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)
    """Of the last round's first batch: `policy_loss` and `kl` at the beginning, `entropy` of a token."""

    @property
    def batch(self) -> float:
        """The median batch."""
        return harness.median(self.seconds)

    def text(self) -> str:
        """A line's worth of it."""
        return f"batch {harness.spread(self.seconds)}, peak {max(self.memory) / 1e9:.2f} GB"


class Training:
    """The same training on both sides."""

    def __init__(self, steps: int, quick: bool) -> None:
        self.python = PEERS.prepare()
        model, rows = harness.prepared(self.python)
        self.folder = tempfile.TemporaryDirectory(prefix="levain-bench-endless-")
        self.model = endless(model, Path(self.folder.name) / "model")
        self.reward = endless_reward(model.with_name("reward"), self.model, Path(self.folder.name) / "reward")
        self.response, self.epochs, self.updates = (8, 2, 2) if quick else (53, 4, 1 + steps)
        self.lines = (rows / "text-64.jsonl").read_text().splitlines()[:EPISODES]
        self.recipes: dict[str, Recipe] = {}

    def recipe(self, dtype: str) -> Recipe:
        """Our side's recipe, with everything before the training done; `first` is a batch of one epoch."""
        if dtype not in self.recipes:
            training = {
                "kind": "ppo", "model": "thin", "reward": "judge", "critic": "judge", "prompts": "rows", "batch": EPISODES,
                "micro_batch": EPISODES, "max_new_tokens": self.response, "temperature": TEMPERATURE, "learning_rate": RATE,
                "schedule": "constant", "warmup": 0, "max_grad_norm": 0, "kl": 0.05, "lambda": 0.95, "gamma": 1.0, "clip": 0.2,
                "value_clip": 0.2, "value_weight": 0.1, "seed": SEED, "snapshot_seconds": 86400,
            }  # fmt: skip
            stages = {
                "base": {"kind": "load_model", "source": str(self.model), "dtype": dtype},
                "judge": {"kind": "load_reward_model", "source": str(self.reward), "dtype": dtype},
                "rows": {"kind": "load_dataset", "source": "rows.jsonl", "format": "text"},
                "thin": {"kind": "lora", "model": "base", "r": 8, "alpha": 16, "targets": "all-linear"},
                "first": {**training, "updates": 1, "epochs": 1},
                "tuned": {**training, "updates": self.updates, "epochs": self.epochs},
            }
            recipe = self.recipes[dtype] = Recipe("bench-ppo", stages)
            (recipe.folder / "rows.jsonl").write_text("\n".join(self.lines) + "\n")
            recipe.run("first")
            harness.measured(recipe.command("export", "thin", recipe.folder / "adapter", "--format", "peft"))
        return self.recipes[dtype]

    def ours(self, dtype: str, side: Side) -> None:
        """One training of ours."""
        recipe = self.recipe(dtype)
        side.memory.append(recipe.run("tuned", "--force", "tuned"))
        updates = recipe.show("tuned.metrics")["metrics"]["updates"]
        tokens = EPISODES * self.response
        done = [(update["tokens"], update["finished"], update["epochs"]) for update in updates]
        harness.equal(done, [(tokens, 0.0, self.epochs)] * self.updates, "sampled tokens, ended completions and epochs of each batch")
        first = recipe.show("first.metrics")["metrics"]["updates"][0]
        side.first = {name: first[name] for name in ("policy_loss", "kl", "entropy")}
        # The log says sampled tokens a second of each batch, not seconds.
        speeds = [event["values"]["tokens_per_second"] for event in recipe.events("tuned") if event["event"] == "metrics"]
        side.seconds += [tokens / speed for speed in speeds[1:]]

    def peer(self, dtype: str, side: Side) -> None:
        """One training of the peer's, and the proof that it did what ours did."""
        recipe = self.recipe(dtype)
        job = {
            "dtype": PEER_DTYPE[dtype], "model": str(self.model), "reward": str(self.reward), "adapter": str(recipe.folder / "adapter"),
            "texts": [json.loads(line)["text"] for line in self.lines], "response": self.response, "epochs": self.epochs,
            "updates": self.updates, "learning_rate": RATE, "temperature": TEMPERATURE, "folder": str(recipe.folder / "trl"), "seed": SEED,
        }  # fmt: skip
        answer, memory = harness.peer(self.python, "_peer_ppo.py", job, TRL_EXPERIMENTAL_SILENCE="1")
        whole = [[EPISODES, PROMPT], [EPISODES, PROMPT + self.response], EPISODES * self.response, self.epochs]
        harness.equal([whole] * self.updates, answer["shapes"], "prompts, rows, tokens that count and updates of each batch")
        side.memory.append(memory)
        side.seconds += answer["seconds"][1:]
        side.first = answer["first"]

    def compare(self, dtype: str, rounds: int) -> tuple[Side, Side]:
        """Rounds of both sides alternately (in f32 one)."""
        ours, theirs = Side(), Side()
        for number in range(rounds if dtype == "bf16" else 1):
            self.ours(dtype, ours)
            self.peer(dtype, theirs)
            self.check(dtype, ours, theirs)
            say(f"  round {number + 1}, {dtype}: ours {ours.seconds[-1]:.1f} s, TRL {theirs.seconds[-1]:.1f} s a batch")
        say(f"{dtype}  ours: {ours.text()}")
        say(f"{dtype}  TRL: {theirs.text()}")
        say(f"{dtype}  equal work: {EPISODES} prompts of {PROMPT} tokens, {self.response} new ones each, {self.epochs} epochs of one step; at first, "
            f"ours and theirs: {self.said(ours, theirs)}")  # fmt: skip
        return ours, theirs

    def said(self, ours: Side, theirs: Side) -> str:
        """What was compared."""
        return ", ".join(f"{name} {ours.first[name]:.4f} and {theirs.first[name]:.4f}" for name in ours.first)

    def check(self, dtype: str, ours: Side, theirs: Side) -> None:
        """What has to be equal although the tokens are not."""
        for side, name in ((ours, "ours"), (theirs, "theirs")):
            loss, kl = side.first["policy_loss"], side.first["kl"]
            if not (abs(loss) <= ZERO[dtype][name] and abs(kl) <= ZERO_KL[dtype]):
                harness.different(f"{dtype}, {name}: in the first epoch the policy loss is {loss:.4f} and the KL {kl:.4f}, not 0")
        if not self.response < 53:
            harness.near([ours.first["entropy"]], [theirs.first["entropy"]], ENTROPY, f"{dtype}: entropy of sampled tokens in batch")

    def floor(self, **sides: Side) -> None:
        """The products of sampling, of four forward passes over the rows, and of the epochs."""
        cost = Cost.of(self.model, rank=8)
        found = rates(self.python)
        best = max(found["f32"], found["bf16"])
        length = PROMPT + self.response
        rows, answers = EPISODES * length, EPISODES * self.response
        seen = length / 2
        # Old and reference log-probabilities, values, scores; then both passes of policy and critic in every epoch.
        looks = rows * 4 * cost.forward(seen) + answers * 2 * cost.head
        epochs = rows * (cost.trained_adapter(seen) + cost.trained_whole(seen)) + answers * 2 * cost.head
        sampling = EPISODES * PROMPT * cost.forward(PROMPT / 2) / best
        # A step multiplies each weight with every row and reads it once: the slower of the two.
        weights = sum(file.stat().st_size for file in self.model.glob("*.safetensors"))
        sampling += self.response * max(EPISODES * (cost.body + cost.head) / best, weights / found["bytes"])
        seconds = sampling + (looks + self.epochs * epochs) / best
        say(f"floor: sampling {sampling:.1f} s, {(looks + self.epochs * epochs) / 1e12:.2f} TFLOP besides at {best / 1e9:.0f} GFLOP/s: {seconds:.1f} s a batch")
        for name, side in sides.items():
            say(f"floor: {name} reaches {seconds / side.batch:.0%} of it")

    def close(self) -> None:
        """Remove the recipes and the models."""
        for recipe in self.recipes.values():
            recipe.__exit__()
        self.folder.cleanup()


def endless_reward(reward: Path, model: Path, folder: Path) -> Path:
    """The reward model with the tokenizer and the end of the endless model."""
    shutil.copytree(reward, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, folder / name)
    ends = json.loads((model / "config.json").read_text())["eos_token_id"]
    settings = json.loads((folder / "config.json").read_text())
    # TRL's loop takes the end as padding too.
    (folder / "config.json").write_text(json.dumps({**settings, "eos_token_id": ends, "pad_token_id": ends}))
    return folder


def main() -> None:
    """Both dtypes, then the floor."""
    options = harness.options(__doc__, steps=2)
    say(f"ppo on {harness.machine()}")
    training = Training(options.steps, options.quick)
    try:
        ours, theirs = training.compare("bf16", options.rounds)
        ours32, theirs32 = training.compare("f32", options.rounds)
        training.floor(**{"ours in bf16": ours, "ours in f32": ours32, "TRL in f32": theirs32})
    finally:
        training.close()
    for own, other, dtype in ((ours, theirs, "bf16"), (ours32, theirs32, "f32")):
        peaks = max(own.memory), max(other.memory)
        say(f"memory, {dtype}: ours {peaks[0] / 1e9:.2f} GB, TRL {peaks[1] / 1e9:.2f} GB: ratio {peaks[1] / peaks[0]:.2f}")
    say(f"against the peer in f32: ratio {theirs32.batch / ours.batch:.2f}")
    say(f"both in f32: ratio {theirs32.batch / ours32.batch:.2f}")
    say(f"ppo ratio {theirs.batch / ours.batch:.2f}")


if __name__ == "__main__":
    harness.run(main)
