"""Writes a Llama with random weights as a Hugging Face folder, shard after shard and without any package: its size is what matters."""

from __future__ import annotations

import array
import json
import math
import os
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Iterator

from levain_setup import store
from levain_setup.say import Progress

FORM = "1"
"""To be changed with what is made."""

HIDDEN, INNER, HEADS, VOCABULARY = 4096, 11008, 32, 32000
"""Those of Llama 2 7B, whose 32 layers share keys and values with no other head."""

SHARD = 1_000_000_000
"""Bytes of a shard, about: one is ended by the tensor that crosses them."""

DRAWN = 4_194_319
"""Normal numbers that are drawn, 8 MB. Tensors are filled with them again and again, each from another place; this is a prime, so
that no two rows of a matrix are the same."""

DEVIATION, SEED = 0.02, 17
END, PAD = "<|endoftext|>", "<|pad|>"
Shapes = list[tuple[str, list[int]]]


@dataclass(frozen=True)
class Llama:
    """A model of so many layers."""

    layers: int

    @property
    def linears(self) -> int:
        """Numbers in what `quantize` takes: all linears but the head."""
        return self.layers * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER)

    @property
    def parameters(self) -> int:
        """All numbers."""
        return sum(math.prod(shape) for _, shape in self.shapes())

    @property
    def size(self) -> int:
        """Bytes of the weights in bf16."""
        return 2 * self.parameters

    @property
    def packed(self) -> int:
        """Bytes of the same in NF4: half a byte for a number, one for a scale of 64, four for the scale of 256 of those."""
        return self.size - 2 * self.linears + int(self.linears * (1 / 2 + 1 / 64 + 4 / (64 * 256)))

    def shapes(self) -> Shapes:
        """Every tensor in the order of the forward pass."""
        shapes: Shapes = [("model.embed_tokens.weight", [VOCABULARY, HIDDEN])]
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            shapes.append((f"{name}.input_layernorm.weight", [HIDDEN]))
            shapes += [(f"{name}.self_attn.{part}_proj.weight", [HIDDEN, HIDDEN]) for part in "qkvo"]
            shapes.append((f"{name}.post_attention_layernorm.weight", [HIDDEN]))
            shapes += [(f"{name}.mlp.{part}_proj.weight", [INNER, HIDDEN]) for part in ("gate", "up")]
            shapes.append((f"{name}.mlp.down_proj.weight", [HIDDEN, INNER]))
        return [*shapes, ("model.norm.weight", [HIDDEN]), ("lm_head.weight", [VOCABULARY, HIDDEN])]

    def config(self) -> dict:
        """The content of config.json."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
            "num_hidden_layers": self.layers, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": VOCABULARY,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
            "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "eos_token_id": 0, "pad_token_id": 1,
            "initializer_range": DEVIATION, "torch_dtype": "bfloat16",
        }  # fmt: skip

    def place(self, home: Path) -> Path:
        """Where it is kept in a folder."""
        return home / f"llama-{self.layers}-layers-{FORM}"

    def prepare(self, home: Path) -> Path:
        """The model's folder, which is written where it is missing. Call it under a lock."""
        target = self.place(home)
        if not target.exists():
            private = Path(tempfile.mkdtemp(prefix=store.PRIVATE, dir=home))
            try:
                self.write(private)
                private.rename(target)
            finally:
                shutil.rmtree(private, ignore_errors=True)
        return target

    def write(self, folder: Path) -> None:
        """Everything in a folder."""
        (folder / "config.json").write_text(json.dumps(self.config(), indent=2) + "\n")
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer(), ensure_ascii=False), encoding="utf-8")
        settings = {"eos_token": END, "pad_token": PAD, "tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        shards = self.shards()
        numbers, places = drawn(), random.Random(SEED + 1)
        found, done, progress = {}, 0, Progress("random weights", self.size)
        for number, shapes in enumerate(shards, 1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            with open(folder / name, "wb") as file:
                write_shard(file, shapes, numbers, places)
                file.flush()
                # Or the disk would still be at work with it while something is measured.
                os.fsync(file.fileno())
            found.update({tensor: name for tensor, _ in shapes})
            done += 2 * sum(math.prod(shape) for _, shape in shapes)
            progress.at(done)
        progress.end(done)
        index = {"metadata": {"total_size": self.size}, "weight_map": found}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def shards(self) -> list[Shapes]:
        """The tensors of each shard."""
        shards: list[Shapes] = [[]]
        filled = 0
        for name, shape in self.shapes():
            if filled >= SHARD:
                shards.append([])
                filled = 0
            shards[-1].append((name, shape))
            filled += 2 * math.prod(shape)
        return shards


def drawn() -> memoryview:
    """Normal numbers in bf16, rounded to nearest, as bytes."""
    chance = random.Random(SEED)
    bits = array.array("I", array.array("f", (chance.gauss(0.0, DEVIATION) for _ in range(DRAWN))).tobytes())
    return memoryview(array.array("H", ((b + 0x7FFF + (b >> 16 & 1)) >> 16 for b in bits))).cast("B")


def pieces(numbers: memoryview, count: int, place: int) -> Iterator[memoryview]:
    """`count` numbers of those that were drawn, from a place on and then from the beginning, as often as it takes."""
    while count:
        piece = numbers[2 * place : 2 * (place + count)]
        yield piece
        count -= len(piece) // 2
        place = 0


def write_shard(file: BinaryIO, shapes: Shapes, numbers: memoryview, places: random.Random) -> None:
    """A safetensors file: norms are ones, everything else is random."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes:
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name, shape in shapes:
        if name.endswith("norm.weight"):
            file.write(b"\x80\x3f" * math.prod(shape))
            continue
        for piece in pieces(numbers, math.prod(shape), places.randrange(DRAWN)):
            file.write(piece)


def tokenizer() -> dict:
    """The content of tokenizer.json: a token for each byte, as GPT-2 writes them, and two special ones."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + place) for place, byte in enumerate(others)}}
    tokens = [END, PAD, *(letters[byte] for byte in range(256))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": place, "content": token, **flags} for place, token in enumerate((END, PAD))],
        "pre_tokenizer": bytes_, "decoder": bytes_,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: place for place, token in enumerate(tokens)}, "merges": [],
        },
    }  # fmt: skip
