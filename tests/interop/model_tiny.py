"""Small random Llamas that transformers saved (one file, shards, untied) are loaded, measured, and trained whole; transformers
loads what was trained. Adapters other than plain LoRA are opened by PEFT before and after our training, and trained there, too.
"""

import copy

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from support.levain import CHECKOUT, Recipe, Report
from support.reference import compare_training, held_out_loss, train
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

TOKENIZER = CHECKOUT / "tests" / "golden" / "data" / "formats" / "tiny"
STEPS, BATCH, MICRO = 6, 5, 2
TRAINING = {
    "learning_rate": 3e-3, "schedule": "cosine", "warmup": 0.3, "weight_decay": 0.1, "max_steps": STEPS, "batch": BATCH,
    "micro_batch": MICRO,
}  # fmt: skip
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A levain is a starter dough: you feed it, keep it, and give a piece away.",
    "def f(x):\n    return x ** 2\n",
    "One, two, three.",
    "It rained for three days, and on the fourth the river stood in the kitchen.",
]
CHATS = [
    ("What is two and two?", "Four."),
    ("Name a grain.", "Rye is a grain, and so is wheat."),
    ("Say nothing.", "As you wish: nothing."),
]
MODELS = {
    # name: (changes of the shape, dtype of the recipe, how it is saved)
    "tied": ({"tie_word_embeddings": True}, "f32", {}),
    "sharded": ({"tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}, "f32",
                {"max_shard_size": "60KB"}),
    "biased": ({"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 32}, "f32", {}),
    "half": ({"tie_word_embeddings": False}, "bf16", {}),
}  # fmt: skip

ADAPTERS = {
    "dora": {"kind": "lora", "r": 4, "alpha": 8, "dora": True},
    "ia3": {"kind": "ia3"},
    # Whole paths, and inputs scaled elsewhere than in the MLP.
    "elsewhere": {"kind": "ia3", "targets": ["q_proj", "o_proj", "1.mlp.down_proj"], "feedforward": ["o_proj"]},
    "outward": {"kind": "ia3", "targets": "all-linear", "feedforward": []},
}


def decay(adapter):
    """Of the weights; nothing of (IA)³ decays, and a decay that does nothing is refused."""
    return 0.0 if adapter["kind"] == "ia3" else TRAINING["weight_decay"]


def save(folder, changes, dtype, how, tokenizer):
    """A random model that differs with its name, larger than usual at the start so that it has opinions."""
    torch.manual_seed(sum(map(ord, folder.name)))
    settings = dict(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=112, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, initializer_range=0.15,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight") or name.endswith(".bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model = model.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    model.save_pretrained(folder, **how)
    tokenizer.save_pretrained(folder)
    return model.eval()


def check(report, name):
    """One model, there and back."""
    changes, dtype, how = MODELS[name]
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    stages = {
        "base": {"kind": "load_model", "source": f"models/{name}", "dtype": dtype},
        "texts": {"kind": "load_dataset", "source": "texts.jsonl", "format": "text"},
        "chats": {"kind": "load_dataset", "source": "chats.jsonl", "format": "messages"},
        "tuned": {"kind": "sft", "model": "base", "data": "texts", **TRAINING},
        "on_texts": {"kind": "evaluate", "models": {"base": "base", "tuned": "tuned"}, "data": "texts"},
        "on_chats": {"kind": "evaluate", "models": {"base": "base", "tuned": "tuned"}, "data": "chats"},
    }
    chats = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in CHATS]
    files = {"texts.jsonl": [{"text": text} for text in TEXTS], "chats.jsonl": chats}
    with Recipe(f"tiny-{name}", stages, files) as recipe:
        model = save(recipe.folder / "models" / name, changes, dtype, how, tokenizer)
        shards = len(list((recipe.folder / "models" / name).glob("*.safetensors")))
        report.check(shards > 2 if how else shards == 1, f"{name}: saved by transformers in {shards} files")
        recipe.run()

        rows = {stage: recipe.tokens(stage) for stage in ["on_texts", "on_chats"]}
        eos = tokenizer.eos_token_id
        theirs = [tokenizer(text).input_ids + [eos] for text in TEXTS]
        report.equal([r["input_ids"] for r in rows["on_texts"]], theirs, f"{name}: ids of {len(TEXTS)} texts")
        theirs = [tokenizer.apply_chat_template(c["messages"], return_dict=True)["input_ids"] for c in chats]
        report.equal([r["input_ids"] for r in rows["on_chats"]], theirs, f"{name}: ids of {len(CHATS)} chats")

        exact = dtype == "f32"
        tolerance = 1e-5 if exact else 1.6e-2
        scores = {stage: recipe.metrics(stage)["models"] for stage in rows}
        for stage, tokens in rows.items():
            loss, accuracy = held_out_loss(model, tokens)
            report.near(scores[stage]["base"]["loss"], loss, tolerance, f"{name}: base, {stage}")
            if exact:
                report.near(scores[stage]["base"]["token_accuracy"], accuracy, 1e-9, f"{name}: base, accuracy {stage}")

        folder = recipe.export("tuned", name)
        tuned, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        strangers = any(found[key] for key in ["missing_keys", "unexpected_keys", "mismatched_keys"])
        report.check(not strangers, f"{name}: every tensor of the export has its place")
        report.equal(str(tuned.dtype).removeprefix("torch."), {"f32": "float32", "bf16": "bfloat16"}[dtype], f"{name}: dtype of the export")
        for stage, tokens in rows.items():
            report.near(scores[stage]["tuned"]["loss"], held_out_loss(tuned, tokens)[0], tolerance, f"{name}: trained here, {stage}")
        again = AutoTokenizer.from_pretrained(folder)
        report.equal([again(t).input_ids for t in TEXTS], [tokenizer(t).input_ids for t in TEXTS], f"{name}: the exported tokenizer")
        report.equal(again.chat_template, tokenizer.chat_template, f"{name}: the exported template")

        if exact:
            warmup = -(-STEPS * 3 // 10)
            theirs = train(model, rows["on_texts"], STEPS, MICRO, 3e-3, warmup, "cosine", weight_decay=0.1)
            ours = recipe.metrics("tuned.metrics")["steps"]
            compare_training(report, ours, theirs, f"{name}: whole model", 1e-4, 1e-3)


def check_adapters(report):
    """Adapters on the model with biases: files, losses, and a training."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    changes, dtype, how = MODELS["biased"]
    stages = {
        "base": {"kind": "load_model", "source": "models/biased", "dtype": dtype},
        "texts": {"kind": "load_dataset", "source": "texts.jsonl", "format": "text"},
    }
    for name, adapter in ADAPTERS.items():
        stages[name] = {**adapter, "model": "base"}
        stages[f"{name}_tuned"] = {"kind": "sft", "model": name, "data": "texts", **TRAINING, "weight_decay": decay(adapter)}
    names = [name + ending for name in ADAPTERS for ending in ("", "_tuned")]
    stages["scores"] = {"kind": "evaluate", "models": {name: name for name in ["base", *names]}, "data": "texts"}
    with Recipe("tiny-adapters", stages, {"texts.jsonl": [{"text": text} for text in TEXTS]}) as recipe:
        model = save(recipe.folder / "models" / "biased", changes, dtype, how, tokenizer)
        recipe.run()
        rows = recipe.tokens("scores")
        scores = recipe.metrics("scores")["models"]
        for name in names:
            folder = recipe.export(name, name, "peft")
            adapted = PeftModel.from_pretrained(copy.deepcopy(model), folder)
            theirs, ours = get_peft_model_state_dict(adapted), load_file(folder / "adapter_model.safetensors")
            report.equal(sorted(ours), sorted(theirs), f"{name}: names of {len(ours)} tensors")
            same = all(torch.equal(ours[key], value) for key, value in theirs.items())
            report.check(same, f"{name}: PEFT has taken every tensor")
            report.near(scores[name]["loss"], held_out_loss(adapted, rows)[0], 1e-5, f"{name}: loss in PEFT")
        for name in ADAPTERS:
            report.near(scores[name]["loss"], scores["base"]["loss"], 1e-6, f"{name}: at first the model is unchanged")
            report.check(scores[f"{name}_tuned"]["loss"] < scores["base"]["loss"], f"{name}: the training lowers the loss")
            adapted = PeftModel.from_pretrained(copy.deepcopy(model), recipe.folder / "export" / name, is_trainable=True)
            warmup = -(-STEPS * 3 // 10)
            tokens = recipe.tokens(f"{name}_tuned")
            theirs = train(adapted, tokens, STEPS, MICRO, 3e-3, warmup, "cosine", weight_decay=decay(ADAPTERS[name]))
            ours = recipe.metrics(f"{name}_tuned.metrics")["steps"]
            compare_training(report, ours, theirs, f"{name}: training", 1e-4, 1e-3)


def main():
    """All models."""
    torch.set_num_threads(2)
    report = Report("model_tiny")
    for name in MODELS:
        check(report, name)
    check_adapters(report)
    report.done()


if __name__ == "__main__":
    main()
