#!/usr/bin/env python3
"""Memory of a QLoRA step of a model in the shape of Llama 2 7B (NF4, LoRA r 64 on q and v, 512 tokens, checkpointing) against 6 GiB.

The ratio is 6 GiB over the most that was resident in the worker, loading included. The weights are random: 13.5 GB in
shards of 1 GB, written once and kept in the cache directory until `--remove`. The rest needs 21 GB more on the same disk,
which are removed at the end: Levain's copy of the shards, the quantized model, and its codes while it is being written.

Also printed: the memory of `levain` while it loads and quantizes, of which it may take 3 GB; what the stages took; what
`levain plan` expects.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path

import _harness as harness
from _levain import STORE, Recipe
from _random_llama import Llama
from levain_setup import store
from levain_setup.say import FAILED, Problem, say

HOME = STORE / "qlora7b"
"""The checkpoints; nothing else is in it when nobody measures."""

LAYERS, QUICK_LAYERS = 32, 2
LENGTH = 512
STEP, QUANTIZE = 6 * 2**30, 3_000_000_000
"""The budgets in bytes: the ratio's, and one that is not to be crossed."""

TEXT = ("A levain is a starter dough: you feed it, keep it, and give a piece away. " * 8)[: LENGTH - 2] + "."
"""A token a letter; a training adds the end of text."""


def disk(model: Llama) -> None:
    """Say what goes to the disk, and refuse early where it has not the room."""
    there = model.place(HOME).exists()
    # The codes lie beside the quantized model until that is written.
    codes = model.linears // 2
    parts = {
        "the model, which is kept": 0 if there else model.size, "Levain's copy of it": model.size, "the quantized model": model.packed,
        "its codes": codes,
    }  # fmt: skip
    text = ", ".join(f"{name}: {size / 1e9:.1f} GB" for name, size in parts.items() if size)
    say(f"to be written in {HOME} ({text}); what is not kept is removed at the end")
    store.check_room(HOME, sum(parts.values()) + 1_000_000_000, f"qlora7b ({text})")


def stages(model: Path, rounds: int) -> dict:
    """The recipe: a training for each round, none of which is in the cache for its seed."""
    training = {
        "kind": "sft", "model": "thin", "data": "rows", "batch": 1, "micro_batch": 1, "max_steps": 1, "max_length": LENGTH,
        "checkpointing": True, "learning_rate": 2e-4, "snapshot_seconds": 86400,
    }  # fmt: skip
    return {
        "base": {"kind": "load_model", "source": str(model), "dtype": "bf16"},
        "small": {"kind": "quantize", "model": "base", "scheme": "nf4", "double_quant": True},
        "rows": {"kind": "load_dataset", "source": "rows.jsonl", "format": "text"},
        "thin": {"kind": "lora", "model": "small", "r": 64, "alpha": 16, "dropout": 0.1, "targets": ["q_proj", "v_proj"]},
        **{f"tuned{number}": {**training, "seed": number} for number in range(1, rounds + 1)},
    }


def seconds(recipe: Recipe, stage: str) -> float:
    """What making a stage took."""
    return recipe.show(stage)["provenance"]["milliseconds"] / 1000


def expected(recipe: Recipe, stage: str) -> None:
    """Print what `levain plan` says of a stage's memory, if it says something."""
    plan = json.loads(harness.measured(recipe.command("plan", "--json"))[0])
    said = next(entry for entry in plan["stages"] if entry["name"] == stage)
    found = {name: value for name, value in said.items() if ("memory" in name or "estimate" in name) and value is not None}
    for name, value in found.items():
        say(f"plan: {stage}: {name} {value / 1e9:.2f} GB" if isinstance(value, (int, float)) else f"plan: {stage}: {name} {json.dumps(value)}")
    if not found:
        say("plan: `levain plan` prints no estimate of memory")


def step(recipe: Recipe, stage: str) -> tuple[int, float]:
    """One step in a process of its own: the most that was resident, and what the step took; it has trained every token."""
    larger = recipe.run(stage)
    steps = recipe.show(f"{stage}.metrics")["metrics"]["steps"]
    # The first token of a row follows nothing.
    harness.equal([(row["tokens"], row["trained_tokens"]) for row in steps], [(LENGTH, LENGTH - 1)], "tokens and trained tokens of the step")
    loss = steps[0]["loss"]
    if not (isinstance(loss, float) and math.isfinite(loss)):
        harness.different(f"the loss is {loss}")
    # The system may not tell the worker's alone: then that of the larger of the two programs.
    peak = recipe.show(stage)["provenance"].get("peak_memory") or larger
    # The log says tokens a second, not seconds.
    (speed,) = [event["values"]["tokens_per_second"] for event in recipe.events(stage) if event["event"] == "metrics"]
    say(f"  {stage}: step {LENGTH / speed:.1f} s, whole stage {seconds(recipe, stage):.1f} s, loss {loss:.4f}; peak of the worker {peak / 1e9:.2f} GB, "
        f"of the larger of the two programs {larger / 1e9:.2f} GB")  # fmt: skip
    return peak, LENGTH / speed


def measure(model: Llama, rounds: int) -> None:
    """Load and quantize once, then a step in every round."""
    disk(model)
    folder = model.prepare(HOME)
    private = Path(tempfile.mkdtemp(prefix=store.PRIVATE, dir=HOME))
    try:
        with Recipe("bench-qlora7b", stages(folder, rounds), cache=private / "cache") as recipe:
            (recipe.folder / "rows.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
            loading = recipe.run("base")
            quantizing = recipe.run("small")
            taken = seconds(recipe, "small")
            packed = sum(file["bytes"] for file in recipe.show("small")["files"] if file["name"].endswith(".safetensors"))
            say(f"load_model: {seconds(recipe, 'base'):.1f} s, peak {loading / 1e9:.2f} GB")
            say(f"quantize: {taken:.1f} s, {model.linears / taken / 1e6:.0f} million parameters/s; {model.size / 1e9:.2f} GB became "
                f"{packed / 1e9:.2f} GB; peak {quantizing / 1e9:.2f} GB of a budget of {QUANTIZE / 1e9:.0f} GB")  # fmt: skip
            recipe.run("thin")
            expected(recipe, "tuned1")
            found = [step(recipe, f"tuned{number}") for number in range(1, rounds + 1)]
    finally:
        shutil.rmtree(private, ignore_errors=True)
    peaks, times = [peak for peak, _ in found], [time for _, time in found]
    peak = harness.median(peaks)
    say(f"step of {LENGTH} tokens: {harness.spread(times)}, {LENGTH / harness.median(times):.1f} tokens/s")
    say(f"peak of the worker: {harness.spread([value / 1e9 for value in peaks], 'GB')} of a budget of {STEP / 1e9:.2f} GB (6 GiB)")
    say(f"floor: the quantized weights alone are {packed / 1e9:.2f} GB; the peak is {peak / packed:.2f} times that")
    if quantizing > QUANTIZE:
        raise Problem(
            FAILED, f"quantize takes {quantizing / 1e9:.2f} GB, more than the {QUANTIZE / 1e9:.0f} GB that it may take",
            why="that is the most that was resident in the larger of the two programs, mapped files included", todo="no ratio is printed; look at what it keeps",
        )  # fmt: skip
    say(f"qlora7b ratio {STEP / peak:.2f}")


def main() -> None:
    """One at a time: there is not the room for two, neither in memory nor on the disk."""
    options = harness.options(__doc__, remove="remove the checkpoints that are kept, and measure nothing")
    model = Llama(QUICK_LAYERS if options.quick else LAYERS)
    store.make_folder(HOME)
    with store.lock(HOME / ".lock", "measuring qlora7b"):
        # What a killed benchmark left.
        store.sweep(HOME)
        if options.remove:
            for folder in HOME.glob("llama-*"):
                say(f"removing {folder}")
                store.remove(folder)
            return
        say(f"qlora7b on {harness.machine()}: {model.layers} layers, {model.parameters / 1e9:.2f} billion parameters, "
            f"{model.linears / 1e9:.2f} of them quantized")  # fmt: skip
        measure(model, options.rounds)


if __name__ == "__main__":
    harness.run(main)
