"""A Parquet file as hubs keep datasets, and ROUGE-L by Google's own package, for src/data/tests/files.rs.

Pinned: pyarrow (the version is in the file), rouge_score 0.1.2. Run: python tests/golden/make/data_files.py
"""

import json
import math
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rouge_score import rouge_scorer

OUT = pathlib.Path(__file__).parent.parent / "data" / "data"
WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
PAIRS = [
    ("The capital of France is Paris.", "Paris is the capital of France"),
    ("a b c", "a b c"),
    ("", "a"),
    ("no overlap", "whatsoever, none!"),
    ("It's 3.14, isn't it?", "it is 3 14"),
    ("Größe und Maß", "grosse und mass"),
    ("x " * 40 + "y", "y " + "x " * 30),
]


def main():
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))
    rows = [
        [{"role": "user", "content": "Wie?"}, {"role": "assistant", "content": "So: 🦀"}],
        [{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}],
    ]
    table = pa.table({
        "messages": pa.array(rows, turns),
        "score": pa.array([1.5, None]),
        "source": pa.array(["a", "b"]).dictionary_encode(),
    })
    pq.write_table(table, OUT / "messages.parquet", compression="snappy")
    broken = pa.table({"text": pa.array(["a", None, "c"])})
    pq.write_table(broken, OUT / "null.parquet", compression="zstd")

    whole = {kind: pa.array([7, 100], getattr(pa, kind)()) for kind in WHOLE}
    values = pa.table({
        "completion": pa.array(["a", "a"]),
        "label": pa.array([True, False]),
        **whole,
        "half": pa.array(np.array([0.5, -2], np.float16)),
        "float": pa.array([0.5, -2], pa.float32()),
        "double": pa.array([0.5, -2], pa.float64()),
        "score": pa.array([math.nan, 1.0], pa.float64()),
    })
    pq.write_table(values, OUT / "values.parquet", compression="none")

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    scores = [
        {"candidate": a, "reference": b, "rouge_l": scorer.score(b, a)["rougeL"].fmeasure} for a, b in PAIRS
    ]
    (OUT / "rouge.json").write_text(json.dumps(scores, ensure_ascii=False, indent=1) + "\n")


main()
