"""What the products of a Llama alone take at this machine's best rates: the floor that is printed beside measured times."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import _harness as harness
from levain_setup.say import say


@dataclass(frozen=True)
class Cost:
    """Operations of one token in one forward pass."""

    body: float
    """Products with the blocks' weights."""

    head: float
    """The product that makes its logits."""

    adapters: float
    """Products with the adapters' weights."""

    seen: float
    """Attention to one earlier token."""

    @staticmethod
    def of(model: Path, rank: int) -> Cost:
        """Of the model in a folder, with adapters of a rank on all linears of its blocks."""
        config = json.loads((model / "config.json").read_text())
        wide, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
        heads = config["num_attention_heads"] * config["head_dim"]
        narrow = config["num_key_value_heads"] * config["head_dim"]
        linears = [(wide, heads), (wide, narrow), (wide, narrow), (heads, wide), (wide, inner), (wide, inner), (inner, wide)]
        return Cost(
            body=2.0 * layers * sum(a * b for a, b in linears),
            head=2.0 * wide * config["vocab_size"],
            adapters=2.0 * layers * sum(rank * (a + b) for a, b in linears),
            # Scores and mixture.
            seen=4.0 * layers * heads,
        )

    def forward(self, seen: float) -> float:
        """A forward pass without logits, of a token that sees so many."""
        return self.body + self.seen * seen

    def trained_adapter(self, seen: float) -> float:
        """Both passes without logits: frozen weights take no gradient, adapters do; attention's backward is twice its forward."""
        return 2 * self.body + 3 * self.adapters + 3 * self.seen * seen

    def trained_whole(self, seen: float) -> float:
        """Both passes without logits where every weight is trained."""
        return 3 * (self.body + self.seen * seen)


def rates(python: Path) -> dict[str, float]:
    """Operations a second of products in either dtype, and bytes a second, of the peer's libtorch on this machine."""
    return harness.peer(python, "_peer_floor.py", {})[0]


def print_floor(python: Path, count: float, unit: str, sides: dict[str, float]) -> None:
    """Print what `count` operations would take at the best rate, and how near each side's seconds are."""
    found = rates(python)
    best = max(found["f32"], found["bf16"])
    say(f"floor: {count / 1e12:.2f} TFLOP a {unit}; libtorch's products do {found['f32'] / 1e9:.0f} GFLOP/s in f32 and "
        f"{found['bf16'] / 1e9:.1f} in bf16: {count / best:.1f} s at the better of the two")  # fmt: skip
    for name, seconds in sides.items():
        say(f"floor: {name} reaches {count / best / seconds:.0%} of it")
