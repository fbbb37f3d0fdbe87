"""Converts the GGUF model to a Hugging Face folder in bf16, and cuts texts into rows of exactly 512 and 64 tokens."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

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


def main():
    """Everything in the folder that is named."""
    folder = Path(sys.argv[1])
    tokenizer = model(folder)
    ids = tokenizer("\n\n".join(json.loads((folder / "source.json").read_text()))).input_ids
    (folder / "rows").mkdir()
    # A training adds the end of text to a row; a prompt stays as it is.
    for name, length in (("text-512", 511), ("text-64", 64)):
        lines = [json.dumps({"text": text}) + "\n" for text in cut(tokenizer, ids, length)]
        (folder / "rows" / f"{name}.jsonl").write_text("".join(lines))


main()
