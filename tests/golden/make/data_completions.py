"""Tokens of preference pairs as TRL's DPOTrainer makes them, and prompts as its extract_prompt finds them, for
src/data/tests/completions.rs and src/data/tests/read_pairs.rs.

Takes the tokenizers and templates that data_tokens.py and data_templates.py left.
Pinned: trl 1.16.0, transformers 5.23.0, tokenizers 0.22.2, torch 2.13.0.
Run: OMP_NUM_THREADS=1 python tests/golden/make/data_completions.py
"""

import json
import pathlib
import tempfile

import datasets
import tokenizers
import transformers
import trl
from trl.data_utils import extract_prompt

assert trl.__version__ == "1.16.0" and transformers.__version__ == "5.23.0"
OUT = pathlib.Path(__file__).parent.parent / "data" / "data"
TEMPLATES = {t["name"]: t["source"] for t in json.loads((OUT / "templates.json").read_text())}
# Writes the prompt alone in another way than with an answer behind it.
TEMPLATES["thoughtful"] = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nWhat is the answer?{% endif %}"
)


def turn(role, content):
    return {"role": role, "content": content}


TEXTS = [
    {"prompt": "Q: What is the capital of France?\nA:", "chosen": " Paris.", "rejected": " Maß."},
    {"prompt": "The capi", "chosen": "tal of France", "rejected": " of bread"},
    {"prompt": "wait ", "chosen": " bake", "rejected": "mix"},
    {"prompt": "", "chosen": "You are a helpful AI assistant", "rejected": "Yo"},
    {"prompt": "system\n", "chosen": "\n\nuser", "rejected": ""},
    {"prompt": "🦀", "chosen": "🦀", "rejected": "done<|im_end|>"},
    {"prompt": "flour and water " * 12, "chosen": "mix", "rejected": "mix flour and bake"},
]
CHATS = [
    {"prompt": [turn("user", "What is the capital of France?")], "chosen": "Paris.", "rejected": "\n Bread "},
    {
        "prompt": [turn("system", "Be brief."), turn("user", "Hi"), turn("assistant", "Hello."), turn("user", "1. one")],
        "chosen": "2. two", "rejected": "",
    },
    {"prompt": [turn("user", "What is " * 30)], "chosen": "the answer " * 10, "rejected": "the answer " * 11},
]
IMPLICIT = [
    {"chosen": "The capital of France is Paris.", "rejected": "The capital of France is bread."},
    {"chosen": "Hello", "rejected": "Bye"},
    {"chosen": "ab", "rejected": "a"},
    {
        "chosen": [turn("user", "a"), turn("assistant", "b")],
        "rejected": [turn("user", "a"), turn("assistant", "c")],
    },
    {
        "chosen": [turn("system", "s"), turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")],
        "rejected": [turn("system", "s"), turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "")],
    },
]


def prepare(tok, rows, max_length):
    """(prompt tokens, chosen ids, rejected ids) of each row; rows that the trainer drops are missing."""
    shape = transformers.LlamaConfig(
        vocab_size=len(tok), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
    )
    model, reference = transformers.LlamaForCausalLM(shape), transformers.LlamaForCausalLM(shape)
    with tempfile.TemporaryDirectory() as folder:
        config = trl.DPOConfig(output_dir=folder, use_cpu=True, report_to=[], bf16=False, max_length=max_length)
        trainer = trl.DPOTrainer(
            model, reference, args=config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tok
        )
        expected = []
        for row in trainer.train_dataset:
            sides = [(row["prompt_ids"] + row[side])[:max_length] for side in ("chosen_ids", "rejected_ids")]
            expected.append({"prompt": len(row["prompt_ids"]), "ids": sides})
        return expected


def main():
    datasets.disable_progress_bars()
    out = []
    for name in ("tokenizer.json", "tokenizer_bos.json"):
        tok = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer.from_file(str(OUT / name)),
            bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<pad>",
        )

        def case(kind, rows, template, max_length=None):
            tok.chat_template = TEMPLATES[template]
            theirs = rows
            if kind == "chats":
                answers = {side: [[turn("assistant", row[side])] for row in rows] for side in ("chosen", "rejected")}
                theirs = [
                    {**row, "chosen": chosen, "rejected": rejected}
                    for row, chosen, rejected in zip(rows, answers["chosen"], answers["rejected"], strict=True)
                ]
            out.append({
                "name": kind, "tokenizer": name, "template": TEMPLATES[template], "max_length": max_length,
                "rows": rows, "expected": prepare(tok, theirs, max_length),
            })

        case("texts", TEXTS, "smollm2")
        case("texts", TEXTS, "smollm2", max_length=12)
        for template in ("smollm2", "zephyr", "thoughtful"):
            case("chats", CHATS, template)
        case("chats", CHATS, "smollm2", max_length=70)
    prompts = [{"row": row, "expected": extract_prompt(row)} for row in IMPLICIT]
    made = {"tokens": out, "prompts": prompts}
    (OUT / "completions.json").write_text(json.dumps(made, ensure_ascii=False) + "\n")
    print(OUT / "completions.json", (OUT / "completions.json").stat().st_size)


main()
