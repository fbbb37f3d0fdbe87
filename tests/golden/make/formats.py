"""Golden values of the file formats: GGUF, safetensors, config.json, tokenizers, PEFT.

Usage: python tests/golden/make/formats.py [SMOLLM2.gguf]

Writes tests/golden/data/formats. With the path of SmolLM2-135M-Instruct.Q4_1.gguf it also writes the
values of that file, and the small tokenizer cut out of it; without it, those are left as they are.
Pinned: torch 2.13.0, transformers 5.23.0, peft 0.21.2, gguf 0.19.0, safetensors 0.8.0, numpy 2.4.6.
"""

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from gguf import GGUFReader, GGUFWriter, TokenType, dequantize, quantize
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

HERE = Path(__file__).resolve()
DATA = HERE.parents[1] / "data" / "formats"
PACKAGES = ["torch", "transformers", "peft", "gguf", "safetensors", "numpy", "tokenizers"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STRINGS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    " \n \n",
    "Hello world",
    " Hello  world ",
    "    four spaces, then\ttabs\t\tand    runs    inside   ",
    "1",
    "12345",
    "12345 67 8 9.0 1,000,000",
    "\n\n1. first\n\n2. second\n\n   3. third",
    "a  1  2   3",
    "x1y2z3 2024-11-22T23:59:59Z 0x1F 3.14e-10",
    "\u0661\u0662\u0663 \u0967\u0968\u0969 \u00b2\u00b3 \u00bd \u2163",
    "It's we'll I'd they're you've I'm don't DON'T I'LL",
    "CamelCase snake_case kebab-case SCREAMING",
    "!!! ??? ... --- *** ### $$$ %%% ^^^ &&& (((",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff01",
    "\u3053\u3093\u306b\u3061\u306f \u30ab\u30bf\u30ab\u30ca \uc548\ub155\ud558\uc138\uc694",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440, \u039a\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\U0001f600\U0001f680 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f \U0001f44d\U0001f3fd",
    "na\u00efve caf\u00e9 cafe\u0301 \u00fcber Stra\u00dfe \u0152uvre",
    "\u00a0non-breaking\u00a0space\u2003em\u200bzero\ufeffwidth\u3000ideographic",
    "line\r\nbreak\rold\u2028separator\u0085next",
    "control\x00\x01\x1f\x7f characters",
    "def f(x):\n    if x > 0:\n        return [y**2 for y in range(x)]\n\n    # comment\n    raise ValueError(f\"{x!r}\")\n",
    "fn main() {\n\tlet v: Vec<u8> = vec![0; 1 << 10];\n\tprintln!(\"{:?}\", v);\n}\n",
    "<html>\n  <body class=\"a b\">&nbsp;</body>\n</html>",
    "SELECT * FROM t WHERE a = 'b' AND c <> 10; -- done",
    "{\"key\": [1, 2, {\"nested\": null}], \"text\": \"\\u00e9\\n\"}",
    "https://example.com/path?q=1&r=%20x#frag user@example.com C:\\dir\\file.txt",
    "E = mc\u00b2; \u2211\u1d62 x\u1d62 \u2264 \u222b f(x)dx \u2248 \u221e \u2200\u2203\u2208\u211d",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "inside<|im_end|>a word and <|im_start|> spaced <|endoftext|><|endoftext|>",
    "<|im_start|", "im_end|>", "<| im_end |>", "<|IM_END|>", "<repo_name>x<file_sep>y<think>z</think>",
    "The quick brown fox jumps over the lazy dog. " * 4,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
]


def dequantization():
    """Stored bytes and the f32 numbers that the gguf package makes of them."""
    draw = np.random.default_rng(1)
    # Zero, subnormals, the smallest normal, one, the largest, infinities and NaNs as half precision bits.
    halves = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x7D01]
    tensors = {}

    def add(name, stored, kind):
        stored = np.ascontiguousarray(stored)
        tensors[f"{name}.bytes"] = torch.from_numpy(stored.view(np.uint8).reshape(-1).copy())
        with np.errstate(all="ignore"):
            tensors[f"{name}.f32"] = torch.from_numpy(dequantize(stored, kind).reshape(-1).copy())

    for name, kind, block in [("Q4_1", Q.Q4_1, 20), ("Q8_0", Q.Q8_0, 34)]:
        blocks = draw.integers(0, 256, (48, block), dtype=np.uint8)
        scale = draw.normal(0, 0.1, (48, 1)).astype(np.float16)
        blocks[:, 0:2] = scale.view(np.uint8)
        for row, bits in enumerate(halves):
            blocks[row, 0:2] = np.array([bits], np.uint16).view(np.uint8)
        if name == "Q4_1":
            blocks[:, 2:4] = draw.normal(0, 1, (48, 1)).astype(np.float16).view(np.uint8)
            for row, bits in enumerate(halves):
                blocks[row + len(halves), 2:4] = np.array([bits], np.uint16).view(np.uint8)
        add(name, blocks, kind)
        values = draw.normal(0, 0.05, (8, 64)).astype(np.float32)
        values[0] = 0
        add(f"{name}.quantized", quantize(values, kind), kind)
    words = np.concatenate([np.array(halves, np.uint16), draw.integers(0, 1 << 16, 1000).astype(np.uint16)])
    add("F16", words.view(np.float16), Q.F16)
    add("BF16", words.view(np.uint8), Q.BF16)
    add("F32", draw.integers(0, 1 << 32, 500).astype(np.uint32).view(np.float32), Q.F32)
    save_file(tensors, DATA / "dequantize.safetensors")


def safetensors_dtypes():
    """Every dtype, an empty tensor and a scalar, as Python writes them."""
    draw = torch.Generator().manual_seed(2)
    tensors = {
        "f64": torch.randn(2, 3, generator=draw, dtype=torch.float64),
        "f32": torch.randn(3, 2, generator=draw),
        "f16": torch.randn(5, generator=draw).half(),
        "bf16": torch.randn(4, 1, 2, generator=draw).bfloat16(),
        "i64": torch.tensor([-(2**62), 2**62]),
        "i32": torch.tensor([[-7, 8]], dtype=torch.int32),
        "i16": torch.tensor([-300, 300], dtype=torch.int16),
        "i8": torch.tensor([-128, 127, 0], dtype=torch.int8),
        "u8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "a \u00e9\"\\\n name": torch.ones(1),
    }
    save_file(tensors, DATA / "dtypes.safetensors", metadata={"format": "pt"})


def tokens_of(merges, extra):
    """The vocabulary of a byte-level tokenizer: special tokens, the bytes, the merged ones."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"]
    letters = sorted(bytes_to_unicode().values())
    tokens = specials + letters + ["".join(merge.split(" ")) for merge in merges] + extra
    kinds = [TokenType.CONTROL] * len(specials) + [TokenType.NORMAL] * (len(tokens) - len(specials))
    for index in range(len(tokens) - len(extra), len(tokens)):
        kinds[index] = TokenType.USER_DEFINED
    return tokens, kinds


SMALL_MERGES = "t h|h e|i n|a n|\u0120 t|th e|e r|\u0120 a|o n|\u010a \u010a|\u0120 \u0120|r e|\u0120t he|l l|H e|o u|ll o|He llo|\u00c3 \u00a9"


def add_tokenizer(writer, merges, pre, extra=(), add_bos=None, add_eos=None):
    tokens, kinds = tokens_of(merges, list(extra))
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    if add_eos is not None:
        writer.add_add_eos_token(add_eos)
    return len(tokens)


def add_shape(writer, vocabulary):
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def encodings(folder, name):
    """What transformers makes of every string, and the tokens it adds."""
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    messages = [{"role": "user", "content": "Hi 1"}, {"role": "assistant", "content": "Hello"}]
    return tokenizer, {
        "strings": STRINGS,
        "ids": [tokenizer(text).input_ids for text in STRINGS],
        "plain_ids": [tokenizer(text, add_special_tokens=False).input_ids for text in STRINGS],
        "decoded": [
            tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids, clean_up_tokenization_spaces=False)
            for text in STRINGS
        ],
        "bos": tokenizer.bos_token,
        "eos": tokenizer.eos_token,
        "unk": tokenizer.unk_token,
        "pad": tokenizer.pad_token,
        "conversation": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
    }


def write_json(name, value):
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    (DATA / name).write_text(text + "\n")


def tiny_model():
    """A Llama in GGUF with all five quantizations, and what transformers loads from it."""
    path = DATA / "tiny.gguf"
    draw = np.random.default_rng(3)
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    vocabulary = add_tokenizer(writer, SMALL_MERGES.split("|"), "smollm")
    add_shape(writer, vocabulary)

    def add(name, shape, kind):
        values = draw.normal(0, 0.1, shape).astype(np.float32)
        stored = quantize(values, kind)
        writer.add_tensor(name, stored, raw_dtype=kind)

    add("token_embd.weight", (vocabulary, 32), Q.Q8_0)
    add("output_norm.weight", (32,), Q.F32)
    for layer, kinds in enumerate([[Q.Q4_1] * 7, [Q.Q8_0, Q.F16, Q.BF16, Q.F32, Q.F16, Q.BF16, Q.Q4_1]]):
        prefix = f"blk.{layer}"
        add(f"{prefix}.attn_norm.weight", (32,), Q.F32)
        add(f"{prefix}.ffn_norm.weight", (32,), Q.F32)
        names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
        for name, kind in zip(names, kinds):
            rows = 16 if name in ("attn_k", "attn_v") else 32
            add(f"{prefix}.{name}.weight", (rows, 32), kind)
    finish(writer)

    model = AutoModelForCausalLM.from_pretrained(DATA, gguf_file="tiny.gguf", dtype=torch.float32)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, DATA / "tiny.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(DATA / "tiny")
    tokenizer, expected = encodings(DATA, "tiny.gguf")
    write_json("tiny_tokens.json", expected)
    tokenizer.save_pretrained(DATA / "tiny")


def tokenizer_variants():
    """Other pre-tokenizers, added BOS and EOS, tokens that a user added."""
    variants = {
        "llama_bpe_ends": dict(pre="llama-bpe", add_bos=True, add_eos=True),
        "qwen2_bos": dict(pre="qwen2", add_bos=True, add_eos=False),
        "no_pre_added": dict(pre=None, extra=["<think>", "</think>", "\u4f60\u597d"]),
    }
    for name, options in variants.items():
        path = DATA / f"{name}.gguf"
        writer = GGUFWriter(path, "llama")
        add_shape(writer, add_tokenizer(writer, SMALL_MERGES.split("|"), **options))
        finish(writer)
        write_json(f"{name}_tokens.json", encodings(DATA, path.name)[1])


def configs():
    """config.json as transformers writes it for the kinds of rope, and the numbers it reads back."""
    from transformers import LlamaConfig

    scalings = {
        "default": None,
        "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
        "llama3": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_theta": 500000.0,
        },
    }
    for name, rope in scalings.items():
        config = LlamaConfig(
            vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=24, rope_parameters=rope, tie_word_embeddings=True, attention_bias=True,
            eos_token_id=[2, 5], pad_token_id=0, max_position_embeddings=256, rms_norm_eps=1e-5,
        )  # fmt: skip
        (DATA / f"config_{name}.json").write_text(config.to_json_string(use_diff=False))


def adapter():
    """A LoRA adapter on the tiny model as PEFT saves it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_pretrained(DATA, gguf_file="tiny.gguf", dtype=torch.float32)
    config = LoraConfig(
        r=4, lora_alpha=10, lora_dropout=0.05, target_modules=["q_proj", "down_proj", "1.mlp.up_proj"],
        use_rslora=True, task_type="CAUSAL_LM", init_lora_weights="gaussian",
    )  # fmt: skip
    model = get_peft_model(model, config)
    model.peft_config["default"].base_model_name_or_path = "some/base"
    folder = DATA / "adapter"  # beside a model, transformers would take it for a part of that
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["target_modules"] = sorted(settings["target_modules"])  # PEFT writes a set in random order
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True))
    # Which modules PEFT's rules choose for lists of names.
    names = [name for name, module in model.named_modules() if name.endswith("base_layer")]
    write_json("adapter/modules.json", sorted(
        name.removeprefix("base_model.model.").removesuffix(".base_layer") for name in names
    ))  # fmt: skip


def smollm2(path):
    """A tokenizer of the real model's first 2,000 merges."""
    merges = GGUFReader(path).get_field("tokenizer.ggml.merges").contents()[:2000]
    writer = GGUFWriter(DATA / "smollm_2000.gguf", "llama")
    add_shape(writer, add_tokenizer(writer, merges, "smollm", add_bos=False))
    finish(writer)
    write_json("smollm_2000_tokens.json", encodings(DATA, "smollm_2000.gguf")[1])


def main():
    DATA.mkdir(parents=True, exist_ok=True)
    dequantization()
    safetensors_dtypes()
    tiny_model()
    tokenizer_variants()
    configs()
    adapter()
    if len(sys.argv) > 1:
        smollm2(Path(sys.argv[1]).resolve())
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    script = hashlib.sha256(HERE.read_bytes()).hexdigest()
    (DATA / "made_by.json").write_text(json.dumps({"script_sha256": script, "versions": versions}, indent=1) + "\n")


if __name__ == "__main__":
    main()
