"""Bottleneck adapters both ways: those that we made and trained are opened by AdapterHub's package `adapters`, with the same losses, texts and
scores, and trained there from the same start; those that the package made and trained are loaded, measured and trained here. Folders that do
not belong to the base, or hold what is not supported, are refused.
"""

import copy
import json

import adapters
import torch
from adapters import CompacterConfig, DoubleSeqBnConfig, ParBnConfig, SeqBnConfig, SeqBnInvConfig
from safetensors.torch import load_file
from support.levain import CHECKOUT, Recipe, Report
from support.reference import compare_training, held_out_loss, train
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TOKENIZER = CHECKOUT / "tests" / "golden" / "data" / "formats" / "tiny"
WEIGHTS, SETTINGS = "adapter.safetensors", "adapter_config.json"
NAME = "bottleneck"
"""What our adapters are called."""
LAYERS, WIDTH, NEW = 3, 64, 8
STEPS, MICRO, RATE = 6, 2, 1e-2
TRAINING = {
    "learning_rate": RATE, "schedule": "cosine", "warmup": 0.3, "max_steps": STEPS, "batch": 5, "micro_batch": MICRO,
}  # fmt: skip
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A levain is a starter dough: you feed it, keep it, and give a piece away.",
    "def f(x):\n    return x ** 2\n",
    "One, two, three.",
    "It rained for three days, and on the fourth the river stood in the kitchen.",
]
PAIRS = [
    {"prompt": "How is the loaf?", "chosen": " Crisp.", "rejected": " Burnt."},
    {"prompt": "Name a grain.", "chosen": " Rye is a grain, and so is wheat.", "rejected": " Bread"},
    {"prompt": "1, 2,", "chosen": " 3", "rejected": " 7"},
]
SAMPLES = [{"prompt": pair["prompt"], "completion": pair[side]} for pair in PAIRS for side in ("chosen", "rejected")]
FILES = {"texts.jsonl": [{"text": text} for text in TEXTS], "samples.jsonl": SAMPLES, "pairs.jsonl": PAIRS}
STAGES = {
    "base": {"kind": "load_model", "source": "base", "dtype": "f32"},
    "texts": {"kind": "load_dataset", "source": "texts.jsonl", "format": "text"},
    "asked": {"kind": "load_dataset", "source": "samples.jsonl", "format": "prompt-completion"},
    "pairs": {"kind": "load_dataset", "source": "pairs.jsonl", "format": "preference"},
}
OURS = {
    "pfeiffer": ({}, SeqBnConfig()),
    "houlsby": ({"form": "houlsby"}, DoubleSeqBnConfig()),
    # 64 // 9 and 64 // 4.5 numbers.
    "gelu": ({"reduction_factor": 9, "non_linearity": "gelu"}, SeqBnConfig(reduction_factor=9, non_linearity="gelu")),
    "tanh": (
        {"form": "houlsby", "reduction_factor": 4.5, "non_linearity": "tanh"},
        DoubleSeqBnConfig(reduction_factor=4.5, non_linearity="tanh"),
    ),
}
"""Our stages, and the package's settings that mean the same."""
JUDGES = ["pfeiffer", "houlsby"]
THEIRS = {
    "pfeiffer": SeqBnConfig(reduction_factor=8),
    "houlsby": DoubleSeqBnConfig(reduction_factor=8),
    "scaled": SeqBnConfig(reduction_factor=3, non_linearity="gelu_new", scaling=0.5),
    "attention": SeqBnConfig(mh_adapter=True, output_adapter=False, non_linearity="swish"),
    "both": SeqBnConfig(mh_adapter=True, init_weights="mam_adapter"),
}
UNKNOWN = {
    "parallel": (ParBnConfig(), "is_parallel"),
    "inverted": (SeqBnInvConfig(), "inv_adapter"),
    "compact": (CompacterConfig(reduction_factor=8), "phm_layer"),
}
"""The package's other settings, and the field by which they are refused."""


def save(folder, tokenizer, seed=11, width=WIDTH):
    """A random model, larger than usual at the start so that it has opinions, with heads wider than its width says."""
    torch.manual_seed(seed)
    settings = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=112, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256, rms_norm_eps=1e-5, initializer_range=0.15,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def opened(model, folder, name=NAME):
    """A copy of `model` with the adapter of a folder, as the package loads it."""
    adapted = copy.deepcopy(model)
    adapters.init(adapted)
    loaded = adapted.load_adapter(str(folder), set_active=True, use_safetensors=True)
    assert loaded == name, loaded
    return adapted.eval()


def trainable(model, folder, name=NAME):
    """The same, with nothing but the adapter to train."""
    adapted = opened(model, folder, name)
    adapted.train_adapter(name)
    return adapted


def made(model, name, settings):
    """A copy of `model` with a fresh adapter of the package, ready to train."""
    adapted = copy.deepcopy(model)
    adapters.init(adapted)
    adapted.add_adapter(name, config=settings)
    adapted.train_adapter(name)
    return adapted


def kept(adapted, name=NAME):
    """The adapter's tensors in a model of the package."""
    return {key: value for key, value in adapted.state_dict().items() if f".adapters.{name}." in key}


def written(adapted, folder, name=NAME, use_safetensors=True):
    """Has the package save the adapter; the settings that it wrote."""
    folder.parent.mkdir(exist_ok=True)
    adapted.save_adapter(str(folder), name, with_head=False, use_safetensors=use_safetensors)
    return json.loads((folder / SETTINGS).read_text())


def reference(adapted, rows):
    """The plain loop of training, with our schedule."""
    return train(adapted, rows, STEPS, MICRO, RATE, -(-STEPS * 3 // 10), "cosine")


def ours_in_adapters(report, tokenizer):
    """Adapters before and after our training, loaded by the package; the same training there; texts and scores."""
    stages = dict(STAGES)
    for name, (adapter, _) in OURS.items():
        stages[name] = {"kind": "bottleneck", "model": "base", **adapter}
        stages[f"{name}_tuned"] = {"kind": "sft", "model": name, "data": "texts", **TRAINING}
        stages[f"{name}_says"] = {"kind": "generate", "model": f"{name}_tuned", "prompts": "asked", "max_new_tokens": NEW, "temperature": 0}
    for name in JUDGES:
        stages[f"{name}_judge"] = {"kind": "reward_model", "model": name, "data": "pairs", "batch": 2, "max_steps": 4, "learning_rate": 1e-2}
        stages[f"{name}_scores"] = {"kind": "annotate", "samples": "asked", "judge": f"{name}_judge", "make": "scored", "micro_batch": 4}
    names = [name + ending for name in OURS for ending in ("", "_tuned")]
    stages["scores"] = {"kind": "evaluate", "models": {name: name for name in ["base", *names]}, "data": "texts"}
    with Recipe("bottleneck", stages, FILES) as recipe:
        model = save(recipe.folder / "base", tokenizer)
        recipe.run()
        rows, scores = recipe.tokens("scores"), recipe.metrics("scores")["models"]
        base, _ = held_out_loss(model, rows)
        report.near(scores["base"]["loss"], base, 1e-5, "the base's loss")
        for name in names:
            folder = recipe.export(name, name)
            adapted = opened(model, folder)
            ours, theirs = load_file(folder / WEIGHTS), kept(adapted)
            report.equal(sorted(ours), sorted(theirs), f"{name}: names of {len(ours)} tensors")
            report.check(all(torch.equal(ours[key], value) for key, value in theirs.items()), f"{name}: the package has taken every tensor")
            loss, _ = held_out_loss(adapted, rows)
            report.near(scores[name]["loss"], loss, 1e-5, f"{name}: loss in the package")
            fresh = made(model, NAME, OURS[name.removesuffix("_tuned")][1])
            settings = json.loads((folder / SETTINGS).read_text())
            for what, other in [("opened", adapted), ("made", fresh)]:
                there = written(other, recipe.folder / "again" / f"{name}-{what}")
                # But for the folder that the model came from.
                report.equal({**settings, "model_name": ""}, {**there, "model_name": ""}, f"{name}: settings of an adapter {what} there")
        for name in OURS:
            start, end = (recipe.folder / "export" / f"{name}{ending}" for ending in ("", "_tuned"))
            theirs = reference(trainable(model, start), recipe.tokens(f"{name}_tuned"))
            compare_training(report, recipe.metrics(f"{name}_tuned.metrics")["steps"], theirs, f"{name}: training", 1e-4, 2e-3)
            fresh, tuned = scores[name]["loss"], scores[f"{name}_tuned"]["loss"]
            report.check(tuned < fresh * 0.99, f"{name}: the training lowers the loss from {fresh:.4f} to {tuned:.4f}")
            texts(report, recipe, name, opened(model, end), tokenizer)
        for name in JUDGES:
            rewards(report, recipe, name, tokenizer)


def texts(report, recipe, name, adapted, tokenizer):
    """Greedy texts of a trained adapter here and there."""
    # The package's layers do not pass the cache on: transformers has renamed it since. With it, each token would see itself alone.
    settings = {"max_new_tokens": NEW, "do_sample": False, "use_cache": False, "pad_token_id": tokenizer.pad_token_id}
    for row, asked in zip(recipe.show(f"{name}_says")["rows"], SAMPLES, strict=True):
        ids = torch.tensor([tokenizer(asked["prompt"]).input_ids])
        new = adapted.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
        there = tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)
        report.equal(row["completion"], there, f"{name}: greedy text of the package")


@torch.no_grad()
def rewards(report, recipe, name, tokenizer):
    """Scores of a reward model: the package loads the head that stands beside the adapter."""
    folder = recipe.export(f"{name}_judge", f"{name}_judge")
    under = AutoModelForSequenceClassification.from_pretrained(recipe.folder / "base", num_labels=1, dtype=torch.float32)
    judge = opened(under, folder)
    report.check(torch.equal(judge.score.weight, load_file(folder / WEIGHTS)["score.weight"]), f"{name}: the package has taken the head")
    # Row by row: without padding there is nothing that could be taken for it.
    judge.config.pad_token_id = None
    summary = recipe.show(f"{name}_judge")["summary"]
    found = {row["completion"]: row["score"] * summary["deviation"] + summary["mean"] for row in recipe.show(f"{name}_scores")["rows"]}
    for sample in SAMPLES:
        ids = tokenizer(sample["prompt"] + sample["completion"]).input_ids + [tokenizer.eos_token_id]
        theirs = judge(input_ids=torch.tensor([ids])).logits.item()
        report.check(abs(found[sample["completion"]] - theirs) < 1e-4, f"{name}: score {theirs:.6f} of the package's classifier")


def theirs_in_ours(report, tokenizer):
    """Adapters that the package trained, measured and trained further here, and opened there again."""
    rows = [tokenizer(text).input_ids + [tokenizer.eos_token_id] for text in TEXTS]
    rows = [{"input_ids": row, "trained": [True] * len(row)} for row in rows]
    stages = dict(STAGES)
    for name in THEIRS:
        stages[name] = {"kind": "load_adapter", "model": "base", "source": f"theirs/{name}"}
        stages[f"{name}_tuned"] = {"kind": "sft", "model": name, "data": "texts", **TRAINING}
    names = [name + ending for name in THEIRS for ending in ("", "_tuned")]
    stages["scores"] = {"kind": "evaluate", "models": {name: name for name in ["base", *names]}, "data": "texts"}
    with Recipe("bottleneck-theirs", stages, FILES) as recipe:
        model = save(recipe.folder / "base", tokenizer)
        theirs = {}
        for index, (name, settings) in enumerate(THEIRS.items()):
            torch.manual_seed(index)
            theirs[name] = made(model, name, settings)
            train(theirs[name], rows, 3, MICRO, RATE, warmup=0)
            written(theirs[name], recipe.folder / "theirs" / name, name)
        recipe.run()
        report.equal([row["input_ids"] for row in recipe.tokens("scores")], [row["input_ids"] for row in rows], "ids of the texts")
        found = recipe.metrics("scores")["models"]
        for name, adapted in theirs.items():
            before, _ = held_out_loss(adapted, rows)
            report.check(before < found["base"]["loss"] * 0.999, f"{name}: the package's training lowered the loss to {before:.4f}")
            report.near(found[name]["loss"], before, 1e-5, f"{name}: loss of the package's adapter here")
            folder, own = recipe.export(name, f"{name}-kept"), recipe.folder / "theirs" / name
            for file in [WEIGHTS, SETTINGS]:
                report.check((folder / file).read_bytes() == (own / file).read_bytes(), f"{name}: {file} is the package's, byte for byte")
            further = trainable(model, own, name)
            steps = reference(further, recipe.tokens(f"{name}_tuned"))
            compare_training(report, recipe.metrics(f"{name}_tuned.metrics")["steps"], steps, f"{name}: further training", 1e-4, 2e-3)
            back, _ = held_out_loss(opened(model, recipe.export(f"{name}_tuned", f"{name}_tuned"), name), rows)
            report.near(found[f"{name}_tuned"]["loss"], back, 1e-5, f"{name}: trained here, opened in the package again")
            report.near(back, held_out_loss(further, rows)[0], 1e-4, f"{name}: trained further there")


def refusals(report, tokenizer):
    """Folders that are refused: of another base, a pickle, and adapters that do what is not supported."""
    stages = {name: {"kind": "load_model", "source": name, "dtype": "f32"} for name in ["base", "sibling", "wider"]}
    for name in [*UNKNOWN, "pickled", "plain"]:
        stages[name] = {"kind": "load_adapter", "model": "base", "source": f"theirs/{name}"}
    stages["on_wider"] = {**stages["plain"], "model": "wider"}
    stages["on_base"] = {"kind": "load_adapter", "model": "base", "source": "ours"}
    stages["on_sibling"] = {**stages["on_base"], "model": "sibling"}
    stages["on_sibling_meant"] = {**stages["on_sibling"], "other_base": True}
    with Recipe("bottleneck-refused", stages) as recipe:
        model = save(recipe.folder / "base", tokenizer)
        save(recipe.folder / "sibling", tokenizer, seed=12)
        save(recipe.folder / "wider", tokenizer, width=WIDTH + 16)
        base = {"kind": "load_model", "source": str(recipe.folder / "base"), "dtype": "f32"}
        with Recipe("bottleneck-ours", {"base": base, "narrow": {"kind": "bottleneck", "model": "base"}}) as other:
            other.run()
            other.export("narrow", recipe.folder / "ours")
        for name, (settings, _) in {**UNKNOWN, "plain": (SeqBnConfig(), "")}.items():
            written(made(model, name, settings), recipe.folder / "theirs" / name, name)
        written(made(model, NAME, SeqBnConfig()), recipe.folder / "theirs" / "pickled", use_safetensors=False)
        cases = {name: words for name, (_, words) in UNKNOWN.items()}
        cases |= {"pickled": "pickled weights are never loaded", "on_wider": f"width: {WIDTH + 16}", "on_sibling": "which has other weights"}
        for name, words in cases.items():
            said = recipe.refused(name)
            report.check(words in said, f"{name}: refused, {words}" if words in said else f"{name}: `{words}` is not in {said!r}")
        # The same folders on their own base, and where another is meant.
        recipe.run("plain", "on_base", "on_sibling_meant")


def main():
    """Both ways, and what goes neither."""
    torch.set_num_threads(1)
    report = Report("model_bottleneck")
    # Its settings name a class of later versions of transformers.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    ours_in_adapters(report, tokenizer)
    theirs_in_ours(report, tokenizer)
    refusals(report, tokenizer)
    report.done()


if __name__ == "__main__":
    main()
