"""Virtual tokens both ways: prompts and prefixes that we made and trained are opened by PEFT, with the same losses, texts and scores, and trained
there from the same start; those that PEFT made, also through a projection, are loaded and trained here.
"""

import copy
import json

import torch
from peft import PeftConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.cartridge.utils import initialize_kv_prefix_from_text
from safetensors.torch import load_file
from support.levain import CHECKOUT, Recipe, Report
from support.reference import compare_training, count, padded, train
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM

TOKENIZER = CHECKOUT / "tests" / "golden" / "data" / "formats" / "tiny"
VIRTUAL = 6
TEXT = "Answer kindly and in few words, as a baker would."
SHORT = "Rye."
STEPS, MICRO, RATE = 6, 2, 3e-2
NEW = 8
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
ADAPTERS = {
    "text": {"kind": "prompt_tuning", "init_text": TEXT},
    "short": {"kind": "prompt_tuning", "init_text": SHORT},
    "words": {"kind": "prompt_tuning"},
    "noise": {"kind": "prompt_tuning", "init": "random"},
    "prefix": {"kind": "prefix_tuning", "init_text": TEXT},
    "drawn": {"kind": "prefix_tuning"},
    "wild": {"kind": "prefix_tuning", "init": "random"},
}
CONFIGS = {"prompt_tuning": PromptTuningConfig, "prefix_tuning": PrefixTuningConfig}


def save(folder, tokenizer):
    """A random model, larger than usual at the start so that it has opinions, with heads wider than its width says."""
    torch.manual_seed(11)
    settings = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=112, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256, rms_norm_eps=1e-5, initializer_range=0.15,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def loss_of(model, rows):
    """The sum of -log p over the trained tokens, row by row; logits of virtual tokens are passed over."""
    total = 0.0
    for row in rows:
        ids, labels, mask = padded([row])
        logits = model(input_ids=ids, attention_mask=mask).logits[0, -ids.shape[1] :][:-1]
        total = total + torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum")
    return total


@torch.no_grad()
def held_out_loss(model, rows):
    """The mean of the same."""
    return loss_of(model.eval(), rows).item() / count(rows)


def trainable(model, kind, start):
    """PEFT's own adapter, which starts where `start` is: it can't train a stored one."""
    adapted = get_peft_model(copy.deepcopy(model), CONFIGS[kind](task_type="CAUSAL_LM", num_virtual_tokens=len(start)))
    with torch.no_grad():
        adapted.prompt_encoder["default"].embedding.weight.copy_(start)
    return adapted


def starts(report, recipe, model, tokenizer):
    """Where ours start against where PEFT's do."""
    stored = {name: load_file(recipe.folder / "export" / name / "adapter_model.safetensors")["prompt_embeddings"] for name in ADAPTERS}
    for name, text in [("text", TEXT), ("short", SHORT)]:
        settings = PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL, prompt_tuning_init="TEXT", prompt_tuning_init_text=text,
            tokenizer_name_or_path=str(recipe.folder / "base"),
        )  # fmt: skip
        theirs = get_peft_model(copy.deepcopy(model), settings).prompt_encoder["default"].embedding.weight
        report.check(torch.equal(stored[name], theirs), f"{name}: a prompt of a text of {len(tokenizer(text).input_ids)} tokens is PEFT's")
    words = model.get_input_embeddings().weight
    found = all((words == row).all(-1).any() for row in stored["words"])
    report.check(found and len(stored["words"].unique(dim=0)) > 1, "words: a prompt of words is rows of the embedding")
    theirs = trainable(model, "prefix_tuning", stored["prefix"]).eval()
    prefix = initialize_kv_prefix_from_text(theirs, tokenizer, text=TEXT, use_chat_template=False)
    far = (stored["prefix"] - prefix).abs().max().item() / prefix.abs().max().item()
    report.check(far < 1e-5, f"prefix: the prefix of a text is PEFT's, {far:.1e} apart")
    for name in ["noise", "wild"]:
        mean, deviation = stored[name].mean().item(), stored[name].std().item()
        report.check(abs(mean) < 0.2 and abs(deviation - 1) < 0.2, f"{name}: numbers of mean {mean:.3f} and deviation {deviation:.3f}")


def ours_in_peft(report, tokenizer):
    """Adapters before and after our training, loaded by PEFT; the same training there; texts and scores."""
    stages = {
        "base": {"kind": "load_model", "source": "base", "dtype": "f32"},
        "texts": {"kind": "load_dataset", "source": "texts.jsonl", "format": "text"},
        "asked": {"kind": "load_dataset", "source": "samples.jsonl", "format": "prompt-completion"},
        "pairs": {"kind": "load_dataset", "source": "pairs.jsonl", "format": "preference"},
    }
    for name, adapter in ADAPTERS.items():
        stages[name] = {**adapter, "model": "base", "virtual_tokens": VIRTUAL}
        stages[f"{name}_tuned"] = {"kind": "sft", "model": name, "data": "texts", **TRAINING}
    for name in ["text", "drawn"]:
        stages[f"{name}_judge"] = {"kind": "reward_model", "model": name, "data": "pairs", "batch": 2, "max_steps": 4, "learning_rate": 1e-2}
        stages[f"{name}_scores"] = {"kind": "annotate", "samples": "asked", "judge": f"{name}_judge", "make": "scored", "micro_batch": 4}
        stages[f"{name}_says"] = {"kind": "generate", "model": f"{name}_tuned", "prompts": "asked", "max_new_tokens": NEW, "temperature": 0}
    names = [name + ending for name in ADAPTERS for ending in ("", "_tuned")]
    stages["scores"] = {"kind": "evaluate", "models": {name: name for name in ["base", *names]}, "data": "texts"}
    files = {"texts.jsonl": [{"text": text} for text in TEXTS], "samples.jsonl": SAMPLES, "pairs.jsonl": PAIRS}
    with Recipe("soft", stages, files) as recipe:
        model = save(recipe.folder / "base", tokenizer)
        recipe.run()
        rows = recipe.tokens("scores")
        scores = recipe.metrics("scores")["models"]
        for name in names:
            folder = recipe.export(name, name, "peft")
            adapted = PeftModel.from_pretrained(copy.deepcopy(model), folder)
            theirs, ours = get_peft_model_state_dict(adapted), load_file(folder / "adapter_model.safetensors")
            report.equal(sorted(ours), sorted(theirs), f"{name}: names of tensors")
            same = all(torch.equal(ours[key], value) for key, value in theirs.items())
            report.check(same, f"{name}: PEFT has taken every tensor")
            report.near(scores[name]["loss"], held_out_loss(adapted, rows), 1e-5, f"{name}: loss in PEFT")
            # The settings that PEFT itself would write, but for the folder that the model came from.
            adapted.save_pretrained(recipe.folder / "again" / name, save_embedding_layers=False)
            written = json.loads((recipe.folder / "again" / name / "adapter_config.json").read_text())
            mine = json.loads((folder / "adapter_config.json").read_text())
            report.equal({**mine, "base_model_name_or_path": ""}, {**written, "base_model_name_or_path": ""}, f"{name}: settings")
        starts(report, recipe, model, tokenizer)
        for name, adapter in ADAPTERS.items():
            start = load_file(recipe.folder / "export" / name / "adapter_model.safetensors")["prompt_embeddings"]
            adapted = trainable(model, adapter["kind"], start)
            theirs = train(adapted, recipe.tokens(f"{name}_tuned"), STEPS, MICRO, RATE, -(-STEPS * 3 // 10), "cosine")
            compare_training(report, recipe.metrics(f"{name}_tuned.metrics")["steps"], theirs, f"{name}: training", 1e-4, 2e-3)
            report.check(scores[f"{name}_tuned"]["loss"] < scores[name]["loss"], f"{name}: the training lowers the loss")
        for name in ["text", "drawn"]:
            adapted = PeftModel.from_pretrained(copy.deepcopy(model), recipe.folder / "export" / f"{name}_tuned").eval()
            said = recipe.show(f"{name}_says")["rows"]
            for row, asked in zip(said, SAMPLES, strict=True):
                ids = torch.tensor([tokenizer(asked["prompt"]).input_ids])
                made = adapted.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False, eos_token_id=model.config.eos_token_id)[0]
                # Behind a prompt of embeddings generate gives the new tokens alone, or all of them.
                new = made[ids.shape[1] :] if torch.equal(made[: ids.shape[1]], ids[0]) else made
                report.equal(row["completion"], tokenizer.decode(new, skip_special_tokens=True), f"{name}: greedy text of PEFT")
            folder = recipe.export(f"{name}_judge", f"{name}_judge", "peft")
            under = AutoModelForSequenceClassification.from_pretrained(recipe.folder / "base", num_labels=1, dtype=torch.float32)
            judge = PeftModel.from_pretrained(under, folder).eval()
            judge.config.pad_token_id = None
            summary = recipe.show(f"{name}_judge")["summary"]
            found = {row["completion"]: row["score"] * summary["deviation"] + summary["mean"] for row in recipe.show(f"{name}_scores")["rows"]}
            for sample in SAMPLES:
                ids = tokenizer(sample["prompt"] + sample["completion"]).input_ids + [tokenizer.eos_token_id]
                with torch.no_grad():
                    theirs = judge(input_ids=torch.tensor([ids])).logits.item()
                report.check(abs(found[sample["completion"]] - theirs) < 1e-4, f"{name}: score {theirs:.6f} of PEFT's classifier")


def theirs_in_ours(report, tokenizer):
    """What PEFT made, loaded, measured and trained here and there."""
    common = dict(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)
    names = ["prompt", "texts_prompt", "prefix", "projected"]
    stages = {
        "base": {"kind": "load_model", "source": "base", "dtype": "f32"},
        "texts": {"kind": "load_dataset", "source": "texts.jsonl", "format": "text"},
    }
    for name in names:
        stages[name] = {"kind": "load_adapter", "model": "base", "source": f"theirs/{name}"}
        stages[f"{name}_tuned"] = {"kind": "sft", "model": name, "data": "texts", **TRAINING}
    stages["scores"] = {"kind": "evaluate", "models": {name: name for name in ["base", *names]}, "data": "texts"}
    with Recipe("soft-theirs", stages, {"texts.jsonl": [{"text": text} for text in TEXTS]}) as recipe:
        model = save(recipe.folder / "base", tokenizer)
        settings = {
            "prompt": PromptTuningConfig(**common),
            "texts_prompt": PromptTuningConfig(
                prompt_tuning_init="TEXT", prompt_tuning_init_text=TEXT, tokenizer_name_or_path=str(recipe.folder / "base"), **common
            ),
            "prefix": PrefixTuningConfig(**common),
            "projected": PrefixTuningConfig(prefix_projection=True, encoder_hidden_size=24, **common),
        }
        for index, name in enumerate(names):
            torch.manual_seed(index)
            get_peft_model(copy.deepcopy(model), settings[name]).save_pretrained(recipe.folder / "theirs" / name, save_embedding_layers=False)
        recipe.run()
        rows, scores = recipe.tokens("scores"), recipe.metrics("scores")["models"]
        report.near(scores["base"]["loss"], held_out_loss(model, rows), 1e-5, "the base's loss")
        for name in names:
            folder = recipe.folder / "theirs" / name
            report.near(scores[name]["loss"], held_out_loss(PeftModel.from_pretrained(copy.deepcopy(model), folder), rows), 1e-5, f"{name} of PEFT: loss here")
            start = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
            adapted = trainable(model, PeftConfig.from_pretrained(folder).peft_type.value.lower(), start)
            theirs = train(adapted, recipe.tokens(f"{name}_tuned"), STEPS, MICRO, RATE, -(-STEPS * 3 // 10), "cosine")
            compare_training(report, recipe.metrics(f"{name}_tuned.metrics")["steps"], theirs, f"{name} of PEFT: training", 1e-4, 2e-3)


def main():
    """Both ways."""
    torch.set_num_threads(2)
    report = Report("model_soft")
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    ours_in_peft(report, tokenizer)
    theirs_in_ours(report, tokenizer)
    report.done()


if __name__ == "__main__":
    main()
