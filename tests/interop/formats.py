"""Opens with transformers, safetensors and PEFT what the example `interop` of levain-formats writes of a GGUF file: a tiny one
and the real SmolLM2. Every weight, id and setting is the same; exits with an error at the first difference.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import safe_open
from support.levain import smollm2
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

DATA = Path(__file__).resolve().parents[1] / "golden" / "data" / "formats"
TOKENS = DATA / "tiny_tokens.json"
WRITER = Path(os.environ["LEVAIN"]).parent / "examples" / "interop"


def main():
    for gguf in [DATA / "tiny.gguf", Path(smollm2())]:
        with tempfile.TemporaryDirectory() as folder:
            # A blob of the cache has a digest for a name; the ending tells the format.
            named = Path(folder) / "model.gguf"
            named.symlink_to(gguf.resolve())
            subprocess.run([WRITER, named, Path(folder) / "out"], check=True)
            compare(named, Path(folder) / "out")


def compare(gguf, folder):
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    ours, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report[key] for key in ["missing_keys", "unexpected_keys", "mismatched_keys"]), report
    expected = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}, file.metadata()

    config = AutoConfig.from_pretrained(folder)
    for key in ["head_dim", "rms_norm_eps", "rope_parameters", "num_key_value_heads", "tie_word_embeddings",
                "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "vocab_size"]:  # fmt: skip
        assert getattr(config, key) == getattr(theirs.config, key), key

    reference = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in json.loads(TOKENS.read_text())["strings"]:
        assert tokenizer(text).input_ids == reference(text).input_ids, text
        ids = reference(text).input_ids
        assert tokenizer.decode(ids) == reference.decode(ids), text
    for key in ["bos_token", "eos_token", "pad_token", "unk_token", "chat_template"]:
        assert getattr(tokenizer, key) == getattr(reference, key), key

    adapted = PeftModel.from_pretrained(ours, folder / "adapter")
    state = {name: tensor for name, tensor in adapted.state_dict().items() if "lora_" in name}
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as file:
        names = {name.replace(".weight", ".default.weight") for name in file.keys()}
        assert names == set(state), names ^ set(state)
        for name in file.keys():
            assert torch.equal(file.get_tensor(name), state[name.replace(".weight", ".default.weight")]), name
    print(f"{gguf.name}: {len(expected)} tensors, tokenizer and adapter agree")


if __name__ == "__main__":
    main()
