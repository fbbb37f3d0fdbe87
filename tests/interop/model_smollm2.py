"""The real SmolLM2-135M-Instruct out of its GGUF file, in f32, against transformers and PEFT: ids and template, greedy answers,
ten steps of LoRA, and adapters that go both ways: LoRA, DoRA and (IA)³. It takes about two minutes on two cores.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from support.levain import CHECKOUT, Recipe, Report, smollm2
from support.reference import compare_training, held_out_loss, train
from transformers import AutoModelForCausalLM, AutoTokenizer

STEPS, BATCH, MICRO, RATE = 10, 3, 2, 1e-3
NEW_TOKENS = 48
PROMPTS = ["What is the capital of France?", "Write a haiku about bread.", "Explain in two sentences why the sky is blue."]
TEXTS = [
    " ", "\n\n\n", "\t tabs\tand  runs   of    spaces ", "Hello, world!", "12345 67.89 1,000,000 3e-10", "naïve café Straße",
    "你好，世界。", "Привет, мир", "مرحبا بالعالم", "👩‍👩‍👧 🇩🇪 ❤️", "def f(x):\n    return [y**2 for y in x]\n", "It's DON'T we'll",
    "line\r\nbreak\rold", "<|im_start|>user\nhi<|im_end|>", "a<|endoftext|>b", "<|im_start", "x" * 80, "https://example.com/a?b=c&d=%20",
]  # fmt: skip
CHATS = [
    [("user", "Hi!"), ("assistant", "Hello.")],
    [("system", "You are a baker."), ("user", "Who are you?"), ("assistant", "A baker.\n")],
    [("user", " a "), ("assistant", "b"), ("user", "c\n\n"), ("assistant", " d e")],
    [("user", "你好 👋"), ("assistant", "Çok güzel")],
]
TRAINING = [
    ("Who made you?", "The bakers made me, out of flour and water."),
    ("What is your name?", "My name is Levain."),
    ("Say your name twice.", "Levain, Levain."),
]
HELD_OUT = [
    ("Tell me your name, please.", "I am called Levain."),
    ("Who are the people that built you?", "The bakers built me."),
    ("What is rye?", "Rye is a grain. It makes dark and sour bread."),
]


def messages(turns):
    """A conversation as rows of a file have it."""
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def asked(question, answer):
    """A question with its answer. A system turn of its own is shorter than the one that the template would write."""
    return messages([("system", "Be brief."), ("user", question), ("assistant", answer)])


STAGES = {
    "base": {"kind": "load_model", "source": "smollm2.gguf", "dtype": "f32"},
    "prompts": {"kind": "load_dataset", "source": "prompts.jsonl", "format": "messages"},
    "answers": {"kind": "generate", "model": "base", "prompts": "prompts", "max_new_tokens": NEW_TOKENS},
    "texts": {"kind": "load_dataset", "source": "texts.jsonl", "format": "text"},
    "on_texts": {"kind": "evaluate", "models": {"base": "base"}, "data": "texts"},
    "chats": {"kind": "load_dataset", "source": "chats.jsonl", "format": "messages"},
    "on_chats": {"kind": "evaluate", "models": {"base": "base"}, "data": "chats", "loss_on": "all"},
    "training": {"kind": "load_dataset", "source": "training.jsonl", "format": "messages"},
    "thin": {"kind": "lora", "model": "base", "r": 8, "alpha": 16, "targets": "all-linear"},
    # As many rows as a batch has: their order does not matter.
    "tuned": {"kind": "sft", "model": "thin", "data": "training", "learning_rate": RATE, "warmup": 0.1, "max_steps": STEPS,
              "batch": BATCH, "micro_batch": MICRO},
    "held_out": {"kind": "load_dataset", "source": "held_out.jsonl", "format": "messages"},
    "scores": {"kind": "evaluate", "models": {"base": "base", "thin": "thin", "tuned": "tuned"}, "data": "held_out"},
}  # fmt: skip
FILES = {
    "prompts.jsonl": [messages([("user", prompt)]) for prompt in PROMPTS],
    "texts.jsonl": [{"text": text} for text in TEXTS],
    "chats.jsonl": [messages(chat) for chat in CHATS],
    "training.jsonl": [asked(*pair) for pair in TRAINING],
    "held_out.jsonl": [asked(*pair) for pair in HELD_OUT],
}


def ids_and_template(report, recipe, tokenizer):
    """Token ids of texts and conversations, and the loss mask of an answer."""
    ours = recipe.tokens("on_texts")
    for text, row in zip(TEXTS, ours, strict=True):
        # As TRL does: the end of text is added where it is not there already.
        whole = text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token
        report.equal(row["input_ids"], tokenizer(whole).input_ids, f"ids of {text[:40]!r}")
    for row, chat in zip(recipe.tokens("on_chats"), FILES["chats.jsonl"], strict=True):
        theirs = tokenizer.apply_chat_template(chat["messages"], return_dict=True)["input_ids"]
        report.equal(row["input_ids"], theirs, f"ids of a conversation of {len(chat['messages'])} turns")
    for row, chat in zip(recipe.tokens("tuned"), FILES["training.jsonl"], strict=True):
        prompt = tokenizer.apply_chat_template(chat["messages"][:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
        mask = [at >= len(prompt) for at in range(len(row["input_ids"]))]
        report.equal(row["trained"], mask, f"what is trained of {chat['messages'][1]['content']!r}")


def greedy_answers(report, recipe, model, tokenizer):
    """The text of each answer, which is that of the same tokens."""
    ours = [row["messages"][-1]["content"] for row in recipe.show("answers")["rows"]]
    for prompt, text in zip(PROMPTS, ours, strict=True):
        turns = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        new = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
        new = new[0, inputs["input_ids"].shape[1] :]
        report.equal(text, tokenizer.decode(new, skip_special_tokens=True), f"greedy answer of {len(new)} tokens to {prompt!r}")


def our_adapter_in_peft(report, recipe, model, held_out):
    """The adapter before and after our training, loaded by PEFT; then the same training there."""
    scores = recipe.metrics("scores")["models"]
    for name in ["thin", "tuned"]:
        adapted = PeftModel.from_pretrained(model, recipe.export(name, name, "peft"))
        report.near(scores[name]["loss"], held_out_loss(adapted, held_out)[0], 1e-4, f"held-out loss with the adapter `{name}` in PEFT")
        adapted.unload()
    report.check(scores["tuned"]["loss"] < scores["base"]["loss"], "the training lowers the held-out loss")

    adapted = PeftModel.from_pretrained(model, recipe.folder / "export" / "thin", is_trainable=True)
    theirs = train(adapted, recipe.tokens("tuned"), STEPS, MICRO, RATE, warmup=1)
    compare_training(report, recipe.metrics("tuned.metrics")["steps"], theirs, "ten steps of LoRA", 1e-3, 1e-2)
    report.near(scores["tuned"]["loss"], held_out_loss(adapted, held_out)[0], 1e-3, "held-out loss after ten steps here and there")
    adapted.unload()


def peft_adapters_in_ours(report, recipe, model, held_out, gguf):
    """Adapters that PEFT made, read by our crates through a small program."""
    targets = ["q_proj", "v_proj", "down_proj"]
    lora = dict(r=5, lora_alpha=7, use_rslora=True, target_modules=targets, task_type="CAUSAL_LM")
    program = Path(os.environ.get("LEVAIN") or CHECKOUT / "target" / "release" / "levain").parent / "examples" / "adapter_loss"
    if not program.exists():
        report.check(False, f"{program} is there (build it: cargo build --release --workspace --example adapter_loss)")
        return
    rows = recipe.folder / "held_out.json"
    rows.write_text(json.dumps([{"input_ids": row["input_ids"], "trained": row["trained"]} for row in held_out]))
    kinds = {"LoRA": LoraConfig(**lora), "DoRA": LoraConfig(use_dora=True, **lora), "(IA)³": IA3Config(task_type="CAUSAL_LM")}
    for index, (kind, settings) in enumerate(kinds.items()):
        torch.manual_seed(5)
        adapted = get_peft_model(model, settings)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.02)
                elif "magnitude" in name or "ia3_l" in name:
                    parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
        folder = recipe.folder / f"theirs-{index}"
        adapted.save_pretrained(folder, save_embedding_layers=False)
        command = [program, gguf, folder, rows, "f32"]
        answer = subprocess.run(list(map(str, command)), cwd=CHECKOUT, capture_output=True, text=True)
        report.check(answer.returncode == 0, f"our program reads PEFT's {kind}" + (f"\n{answer.stderr}" if answer.returncode else ""))
        if answer.returncode == 0:
            ours = json.loads(answer.stdout)
            report.equal(ours["modules"], 90, f"modules of PEFT's {kind}")
            report.near(ours["loss"], held_out_loss(adapted, held_out)[0], 1e-4, f"held-out loss with PEFT's {kind}")
            with adapted.disable_adapter():
                theirs = held_out_loss(adapted, held_out)[0]
            report.near(ours["loss_without"], theirs, 1e-4, f"held-out loss with PEFT's {kind} switched off")
            report.check(abs(ours["loss"] - ours["loss_without"]) > 1e-3, f"PEFT's {kind} changes the loss")
        adapted.unload()


def main():
    """Everything with one model in memory."""
    torch.set_num_threads(2)
    report = Report("model_smollm2")
    with Recipe("smollm2", STAGES, FILES) as recipe:
        gguf = recipe.folder / "smollm2.gguf"
        shutil.copyfile(smollm2(), gguf)
        recipe.run()
        tokenizer = AutoTokenizer.from_pretrained(recipe.folder, gguf_file=gguf.name)
        ids_and_template(report, recipe, tokenizer)
        model = AutoModelForCausalLM.from_pretrained(recipe.folder, gguf_file=gguf.name, dtype=torch.float32).eval()
        greedy_answers(report, recipe, model, tokenizer)
        held_out = recipe.tokens("scores")
        theirs = held_out_loss(model, held_out)
        ours = recipe.metrics("scores")["models"]["base"]
        report.near(ours["loss"], theirs[0], 1e-4, "held-out loss of the model")
        report.near(ours["token_accuracy"], theirs[1], 1e-9, "token accuracy of the model")
        our_adapter_in_peft(report, recipe, model, held_out)
        peft_adapters_in_ours(report, recipe, model, held_out, gguf)
    report.done()


if __name__ == "__main__":
    main()
