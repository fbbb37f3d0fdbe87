"""Makes src/engine/tests/data/record_vectors.json: records, their canonical encoding, and their keys.

An implementation of its own of the encoding that the head of src/engine/src/record.rs writes down.
Needs: pip install blake3==1.0.11
"""

import json
import struct
from pathlib import Path

from blake3 import blake3

CONTEXT = "levain 1 stage record"
OUT = Path(__file__).resolve().parents[3] / "src" / "engine" / "tests" / "data" / "record_vectors.json"


def tagged(tag: int, payload: bytes) -> bytes:
    return bytes([tag]) + struct.pack("<Q", len(payload)) + payload


def text(value: str) -> bytes:
    return tagged(0x05, value.encode())


def value(x) -> bytes:
    if x is None:
        return tagged(0x01, b"")
    if isinstance(x, bool):
        return tagged(0x02, bytes([x]))
    if isinstance(x, int):
        return tagged(0x03, struct.pack("<q", x))
    if isinstance(x, float):
        return tagged(0x04, struct.pack("<d", 0.0 if x == 0 else x))
    if isinstance(x, str):
        return text(x)
    if isinstance(x, list):
        return tagged(0x07, b"".join(map(value, x)))
    pairs = sorted(x.items(), key=lambda pair: pair[0].encode())
    return tagged(0x08, b"".join(text(k) + value(v) for k, v in pairs))


def digest(hexadecimal: str) -> bytes:
    raw = bytes.fromhex(hexadecimal)
    assert len(raw) == 32
    return tagged(0x06, raw)


def item(x: dict) -> bytes:
    ((kind, content),) = x.items()
    if kind == "value":
        return value(content)
    if kind == "digest":
        return digest(content)
    assert kind == "named"
    return tagged(0x07, b"".join(tagged(0x07, text(name) + digest(d)) for name, d in content))


def encode(record: dict) -> bytes:
    pairs = sorted(record.items(), key=lambda pair: pair[0].encode())
    return tagged(0x07, b"".join(tagged(0x07, text(name) + item(x)) for name, x in pairs))


def of(x) -> dict:
    return {"param.x": {"value": x}}


FLOUR, WATER = blake3(b"flour").hexdigest(), blake3(b"water").hexdigest()

# Names that end in ` = GROUP` have the same key within the group; all others differ.
RECORDS = [
    ("nothing", {}),
    ("null", of(None)),
    ("false", of(False)),
    ("true", of(True)),
    ("the whole number 0", of(0)),
    ("the whole number 1", of(1)),
    ("minus one", of(-1)),
    ("the greatest whole number", of(2**63 - 1)),
    ("the least whole number", of(-(2**63))),
    ("the number 0.0 = zero", of(0.0)),
    ("the number -0.0 = zero", of(-0.0)),
    ("the number 1.0", of(1.0)),
    ("2e-4", of(2e-4)),
    ("0.1", of(0.1)),
    ("the least number above 0", of(5e-324)),
    ("the greatest number", of(1.7976931348623157e308)),
    ("an empty text", of("")),
    ("the text 1", of("1")),
    ("a text in several scripts", of("Sauerteig 酵母 🍞 é")),
    ("a text with a zero", of("a\0b")),
    ("an empty list", of([])),
    ("an empty mapping", of({})),
    ("a list of texts", of(["a", "b"])),
    ("the list the other way round", of(["b", "a"])),
    ("a list in a list", of([["a"], "b"])),
    ("another list in a list", of([["a", "b"]])),
    ("a mapping = order of keys", of({"a": 1, "b": 2})),
    ("the mapping the other way round = order of keys", of({"b": 2, "a": 1})),
    ("keys by their bytes", of({"é": 1, "z": 2, "Z": 3, "": 4, "🍞": 5, "\uffee": 6})),
    ("a mapping in a list in a mapping", of({"a": [{"b": None}, 1.5, True]})),
    ("a digest", {"input.data": {"digest": FLOUR}}),
    ("the digest as a text", {"input.data": {"value": FLOUR}}),
    ("another digest", {"input.data": {"digest": WATER}}),
    ("another port", {"input.rows": {"digest": FLOUR}}),
    ("a port of several", {"input.parts": {"named": [["one", FLOUR], ["two", WATER]]}}),
    ("a port of several, the other way round", {"input.parts": {"named": [["two", WATER], ["one", FLOUR]]}}),
    ("a port of several, named otherwise", {"input.parts": {"named": [["one", FLOUR], ["drei", WATER]]}}),
    ("a port of one in a list", {"input.parts": {"named": [["one", FLOUR]]}}),
    ("a port of none", {"input.parts": {"named": []}}),
    (
        "a stage",
        {
            "kind": {"value": "sft"},
            "version": {"value": 1},
            "param.learning_rate": {"value": 2e-4},
            "param.epochs": {"value": 1.0},
            "param.max_length": {"value": 1024},
            "param.seed": {"value": 17},
            "param.schedule": {"value": "cosine"},
            "input.model": {"digest": FLOUR},
            "input.tokens": {"digest": WATER},
        },
    ),
    (
        "a source",
        {"kind": {"value": "load_dataset"}, "version": {"value": 1}, "source.source": {"digest": WATER}, "param.format": {"value": "auto"}},
    ),
]


def main():
    vectors = []
    for name, record in RECORDS:
        encoding = encode(record)
        key = blake3(encoding, derive_key_context=CONTEXT).hexdigest()
        vectors.append({"name": name, "record": record, "encoding": encoding.hex(), "key": key})
    made_by = "tests/golden/make/record_vectors.py with the Python package blake3 1.0.11"
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"made_by": made_by, "vectors": vectors}, indent=1, ensure_ascii=False) + "\n")


main()
