"""Adapters both ways, beyond what the other scripts compare: what `merge` makes against PEFT's `merge_and_unload`, the rewards of a reward
model with a DoRA adapter, and adapters that PEFT trained, opened by `load_adapter`, trained a step here and opened there again.
"""

import copy
import json

import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from support.levain import CHECKOUT, Recipe, Report
from support.reference import compare_training, held_out_loss, train
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM

TOKENIZER = CHECKOUT / "tests" / "golden" / "data" / "formats" / "tiny"
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A levain is a starter dough: you feed it, keep it, and give a piece away.",
    "def f(x):\n    return x ** 2\n",
    "One, two, three.",
]
FILES = {"texts.jsonl": [{"text": text} for text in TEXTS]}
TEXT_STAGE = {"kind": "load_dataset", "source": "texts.jsonl", "format": "text"}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
LAST_BITS = 2.0**-21
"""How far merged weights may be apart in f32, relative to the largest of a tensor: the order of sums, and DoRA's lengths in f64 here."""
ROUNDING = 2.0**-7
"""The distance from one number of bf16 to the next, at most, relative to the number."""
OFTEN = 2e-3
"""The part of the numbers that may be rounded otherwise, where f32 lies next to the middle between two numbers of bf16."""
ADAPTERS = {
    "lora": {"kind": "lora", "r": 4, "alpha": 8},
    "rslora": {"kind": "lora", "r": 5, "alpha": 7, "rslora": True, "targets": ["q_proj", "v_proj", "down_proj"]},
    "dora": {"kind": "lora", "r": 4, "alpha": 8, "dora": True},
    "ia3": {"kind": "ia3"},
}
THEIRS = {
    "lora": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    "rslora": LoraConfig(r=5, lora_alpha=7, use_rslora=True, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"),
    "dora": LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules="all-linear", task_type="CAUSAL_LM"),
    "ia3": IA3Config(task_type="CAUSAL_LM"),
}
RATE = {"lora": 1e-2, "rslora": 1e-2, "dora": 1e-2, "ia3": 5e-2}
SAMPLES = [
    {"prompt": "How is the loaf?", "completion": " Crisp."},
    {"prompt": "How is the loaf?", "completion": " Burnt at the edges, raw within, and as flat as the day before."},
    {"prompt": "Name a grain.", "completion": " Rye."},
    {"prompt": "1, 2,", "completion": " 3"},
]
PAIRS = [
    {"prompt": "How is the loaf?", "chosen": " Crisp.", "rejected": " Burnt."},
    {"prompt": "Name a grain.", "chosen": " Rye is a grain, and so is wheat.", "rejected": " Bread"},
    {"prompt": "Say nothing.", "chosen": " As you wish.", "rejected": " No, no, no and no again"},
]


def save(folder, dtype, tokenizer):
    """A random model, larger than usual at the start so that it has opinions."""
    torch.manual_seed(11)
    settings = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=112, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.15, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(settings).to(DTYPES[dtype]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load(folder, dtype)


def load(folder, dtype):
    """The model of a folder. Loaded anew: `to` has rounded the frequencies of the positions, which are no weights, too."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval()


def merged(model, folder):
    """The weights of a copy of `model` with the adapter of a folder merged by PEFT."""
    adapted = PeftModel.from_pretrained(copy.deepcopy(model), folder)
    return {name: parameter.detach() for name, parameter in adapted.merge_and_unload().named_parameters()}


def compare_merged(report, what, ours, theirs, base):
    """Merged weights against PEFT's; both are rounded once from f32. `base` is unmerged."""
    report.equal(sorted(ours), sorted(theirs), f"{what}: names of {len(ours)} tensors")
    report.equal({weight.dtype for weight in ours.values()}, {weight.dtype for weight in theirs.values()}, f"{what}: types")
    changed = sum(not torch.equal(theirs[name], weight) for name, weight in base.items())
    report.check(changed > 0, f"{what}: {changed} tensors are changed")
    far, apart, differ, count = 0.0, 0.0, 0, 0
    for name, weight in ours.items():
        a, b = weight.float(), theirs[name].float()
        far = max(far, ((a - b).abs().max() / b.abs().max()).item())
        apart = max(apart, ((a - b).abs() / torch.maximum(a.abs(), b.abs()).clamp_min(1e-30)).max().item())
        differ += int((a != b).sum())
        count += a.numel()
    if {weight.dtype for weight in ours.values()} == {torch.float32}:
        report.check(far <= LAST_BITS, f"{what}: weights are {far:.1e} apart (at most {LAST_BITS:.1e})")
        return
    report.check(differ <= OFTEN * count, f"{what}: {differ} of {count} weights are rounded otherwise (at most {OFTEN * count:.0f})")
    report.check(apart <= ROUNDING, f"{what}: weights are {apart:.1e} apart (one rounding is {ROUNDING:.1e})")


def merge(report, tokenizer, dtype):
    """Adapters that we trained and merged, against PEFT's `merge_and_unload` of the same."""
    stages = {
        "base": {"kind": "load_model", "source": "base", "dtype": dtype},
        "texts": TEXT_STAGE,
    }
    for name, adapter in ADAPTERS.items():
        stages[f"{name}_fresh"] = {**adapter, "model": "base"}
        stages[name] = {
            "kind": "sft", "model": f"{name}_fresh", "data": "texts", "learning_rate": RATE[name], "max_steps": 6, "batch": 4,
        }  # fmt: skip
        stages[f"{name}_merged"] = {"kind": "merge", "model": name}
    with Recipe(f"adapters-merge-{dtype}", stages, FILES) as recipe:
        model = save(recipe.folder / "base", dtype, tokenizer)
        base = dict(model.named_parameters())
        recipe.run()
        for name in ADAPTERS:
            adapter = recipe.export(name, name, "peft")
            said = json.loads((adapter / "levain_base.json").read_text())
            report.equal(len(said["weights"]), 1, f"{name} in {dtype}: the export names its base")
            ours = load_file(recipe.export(f"{name}_merged", f"{name}_merged") / "model.safetensors")
            compare_merged(report, f"{name} in {dtype}", ours, merged(model, adapter), base)


def ids(tokenizer, row):
    """A completion after its prompt with the end of text, as both sides train on it."""
    return tokenizer(row["prompt"] + row["completion"]).input_ids + [tokenizer.eos_token_id]


def rewards(report, tokenizer):
    """Reward models with adapters that are not plain LoRA: the head beside the adapter, and the scores."""
    stages = {
        "base": {"kind": "load_model", "source": "base", "dtype": "f32"},
        "pairs": {"kind": "load_dataset", "source": "pairs.jsonl", "format": "preference"},
        "samples": {"kind": "load_dataset", "source": "samples.jsonl", "format": "prompt-completion"},
    }
    names = ["dora", "ia3"]
    for name in names:
        stages[f"{name}_fresh"] = {**ADAPTERS[name], "model": "base"}
        stages[name] = {
            "kind": "reward_model", "model": f"{name}_fresh", "data": "pairs", "batch": 3, "max_steps": 6, "learning_rate": RATE[name],
        }  # fmt: skip
        stages[f"by_{name}"] = {"kind": "annotate", "samples": "samples", "judge": name, "make": "scored", "micro_batch": 3}
    with Recipe("adapters-rewards", stages, {"pairs.jsonl": PAIRS, "samples.jsonl": SAMPLES}) as recipe:
        save(recipe.folder / "base", "f32", tokenizer)
        recipe.run()
        for name in names:
            summary = recipe.show(name)["summary"]
            found = {row["completion"]: row["score"] for row in recipe.show(f"by_{name}")["rows"]}
            ours = [found[row["completion"]] * summary["deviation"] + summary["mean"] for row in SAMPLES]
            folder = recipe.export(name, name, "peft")
            theirs = scores(recipe.folder / "base", folder, tokenizer)
            spread = max(theirs) - min(theirs)
            far = max(abs(a - b) for a, b in zip(ours, theirs)) / spread
            report.check(spread > 1e-3 and far <= 1e-4, f"rewards with {name}: over {spread:.3f} they are {far:.1e} apart (at most 1e-04)")


@torch.no_grad()
def scores(base, folder, tokenizer):
    """The rewards of the samples by transformers and PEFT, row by row: without padding there is nothing that could be taken for it."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, folder).eval()
    adapted.config.pad_token_id = None
    return [adapted(input_ids=torch.tensor([ids(tokenizer, row)])).logits.item() for row in SAMPLES]


def trained_there(model, settings, rows, rate):
    """A copy of `model` with an adapter that PEFT made and trained."""
    torch.manual_seed(5)
    adapted = get_peft_model(copy.deepcopy(model), settings)
    train(adapted, rows, 3, 2, rate, warmup=0)
    return adapted.eval()


def there_and_back(report, tokenizer):
    """Adapters that PEFT trained, measured and trained a step here, and opened there again."""
    rows = [tokenizer(text).input_ids + [tokenizer.eos_token_id] for text in TEXTS]
    rows = [{"input_ids": row, "trained": [True] * len(row)} for row in rows]
    stages = {"base": {"kind": "load_model", "source": "base", "dtype": "f32"}, "texts": TEXT_STAGE}
    for name in THEIRS:
        stages[name] = {"kind": "load_adapter", "model": "base", "source": f"theirs/{name}"}
        # As many rows as a batch has: their order does not matter.
        stages[f"{name}_tuned"] = {
            "kind": "sft", "model": name, "data": "texts", "learning_rate": 1e-3, "warmup": 0, "max_steps": 1, "batch": len(rows),
            "micro_batch": 2,
        }  # fmt: skip
        stages[f"{name}_merged"] = {"kind": "merge", "model": name}
    names = [name + ending for name in THEIRS for ending in ("", "_tuned", "_merged")]
    stages["scores"] = {"kind": "evaluate", "models": {name: name for name in ["base", *names]}, "data": "texts"}
    with Recipe("adapters-theirs", stages, FILES) as recipe:
        model = save(recipe.folder / "base", "f32", tokenizer)
        theirs = {}
        for name, settings in THEIRS.items():
            theirs[name] = trained_there(model, copy.deepcopy(settings), rows, RATE[name])
            theirs[name].save_pretrained(recipe.folder / "theirs" / name, save_embedding_layers=False)
        recipe.run()
        report.equal([row["input_ids"] for row in recipe.tokens("scores")], [row["input_ids"] for row in rows], "ids of the texts")
        found = recipe.metrics("scores")["models"]
        for name, adapted in theirs.items():
            before, _ = held_out_loss(adapted, rows)
            report.check(abs(before / found["base"]["loss"] - 1) > 1e-3, f"{name}: PEFT's training changed the loss to {before:.4f}")
            report.near(found[name]["loss"], before, 1e-5, f"{name}: loss of PEFT's adapter here")
            report.near(found[f"{name}_merged"]["loss"], before, 1e-5, f"{name}: loss of PEFT's adapter, merged here")
            kept = recipe.export(name, f"{name}-kept", "peft")
            own = recipe.folder / "theirs" / name
            for file in ["adapter_model.safetensors", "adapter_config.json"]:
                report.check((kept / file).read_bytes() == (own / file).read_bytes(), f"{name}: {file} is PEFT's, byte for byte")

            again = PeftModel.from_pretrained(copy.deepcopy(model), own, is_trainable=True)
            steps = train(again, rows, 1, 2, 1e-3, warmup=0)
            compare_training(report, recipe.metrics(f"{name}_tuned.metrics")["steps"], steps, f"{name}: a step further", 1e-4, 1e-3)
            opened = PeftModel.from_pretrained(copy.deepcopy(model), recipe.export(f"{name}_tuned", f"{name}_tuned", "peft"))
            after, _ = held_out_loss(opened, rows)
            report.near(found[f"{name}_tuned"]["loss"], after, 1e-5, f"{name}: a step further, opened in PEFT again")
            report.near(after, held_out_loss(again, rows)[0], 1e-4, f"{name}: a step further there")
            report.check(after < before, f"{name}: the step lowers the loss from {before:.6f} to {after:.6f}")


def main():
    """All adapters, both ways."""
    torch.set_num_threads(2)
    report = Report("model_adapters")
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    for dtype in DTYPES:
        merge(report, tokenizer, dtype)
    rewards(report, tokenizer)
    there_and_back(report, tokenizer)
    report.done()


if __name__ == "__main__":
    main()
