"""Converts the GGUF model to a Hugging Face folder in bf16, puts a head for rewards on it, and cuts texts into rows and pairs of
exact numbers of tokens."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

COUNT = 8
"""Rows of each length."""


def model(folder):
    """The model with its tokenizer. What was quantized is numbers now, and the configuration has to say so."""
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32).to(torch.bfloat16)
    loaded.is_quantized, loaded.hf_quantizer, loaded.quantization_method = False, None, None
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    loaded.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return tokenizer


def reward(folder, tokenizer):
    """The same model under a random head: what it says is of no account, what it takes is."""
    torch.manual_seed(17)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1, dtype=torch.bfloat16)
    loaded.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")


def cut(tokenizer, ids, length):
    """Texts that are `length` tokens again when they are tokenized: not every cut is."""
    texts = []
    for at in range(0, len(ids) - length, length):
        text = tokenizer.decode(ids[at : at + length])
        if text == text.strip() and tokenizer(text).input_ids == ids[at : at + length]:
            texts.append(text)
        if len(texts) == COUNT:
            return texts
    sys.exit(f"too few rows of {length} tokens")


def pairs(tokenizer, ids, length):
    """Prompts of `length` tokens with two completions, which have as many with the end of text that a training adds."""
    rows = []
    for at in range(0, len(ids) - 3 * length, 3 * length):
        prompt = ids[at : at + length]
        answers = [ids[at + length : at + 2 * length - 1], ids[at + 2 * length : at + 3 * length - 1]]
        texts = [tokenizer.decode(part) for part in [prompt, *answers]]
        whole = [tokenizer(texts[0] + text).input_ids for text in texts[1:]]
        if tokenizer(texts[0]).input_ids == prompt and whole == [prompt + answer for answer in answers]:
            rows.append(dict(zip(("prompt", "chosen", "rejected"), texts)))
        if len(rows) == COUNT:
            return rows
    sys.exit(f"too few pairs of {length} tokens")


def main():
    """Everything in the folder that is named."""
    folder = Path(sys.argv[1])
    tokenizer = model(folder)
    reward(folder, tokenizer)
    ids = tokenizer("\n\n".join(json.loads((folder / "source.json").read_text()))).input_ids
    (folder / "rows").mkdir()
    # A training adds the end of text to a row; a prompt stays as it is.
    for name, length in (("text-512", 511), ("text-64", 64)):
        lines = [json.dumps({"text": text}) + "\n" for text in cut(tokenizer, ids, length)]
        (folder / "rows" / f"{name}.jsonl").write_text("".join(lines))
    for length in (96, 16):
        lines = [json.dumps(row) + "\n" for row in pairs(tokenizer, ids, length)]
        (folder / "rows" / f"pairs-{length}.jsonl").write_text("".join(lines))


main()
