#!/usr/bin/env python3
"""Print the tables of recipes/shelf.yaml, once it has run: of every method how many numbers it trained, its time, its memory, and the scores.

`python3 scripts/shelf.py [LEVAIN] [CACHE]`: the program (else target/release/levain) and the cache (else cache/) that the recipe was run with.
All is read from that cache, by `levain show --json` and from the logs of the runs. Where a group has several seeds, times and scores are means,
with the smallest and the largest score behind them; memory is the most of all seeds. Methods are sorted by the numbers that they train.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
RECIPE = "recipes/shelf.yaml"
GROUPS = {"language": [17, 18, 19], "slow": [17], "labels": [17, 18, 19], "labels_slow": [17]}
"""The groups of the recipe and their seeds."""

TRAINED = re.compile(r"(\d+) (?:of \d+ )?parameters (?:are trained|on \d+ vectors)")


class Shelf:
    """What the cache says of the recipe."""

    def __init__(self, levain: str, cache: Path) -> None:
        self.levain = levain
        self.cache = cache
        self.trained = self.counted()

    def show(self, stage: str) -> dict:
        """What `levain show --json` says of a stage."""
        words = [self.levain, "--cache", str(self.cache), "show", RECIPE, stage, "--json"]
        said = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        if said.returncode != 0:
            sys.exit(f"{stage}: {said.stderr.strip() or said.stdout.strip()}")
        return json.loads(said.stdout)

    def counted(self) -> dict[str, int]:
        """How many numbers each stage trained, as its run wrote into its log; the latest run counts."""
        found = {}
        for log in sorted(self.cache.glob("runs/*-shelf-*/events.jsonl")):
            for line in log.read_text(encoding="utf-8").splitlines():
                event = json.loads(line)
                match = TRAINED.match(event.get("text") or "")
                if match and "stage" in event:
                    found[event["stage"]] = int(match[1])
        return found

    def rows(self, group: str) -> list[list[str]]:
        """The table of a group: its head, and a row for each method."""
        cells = [f"{group}[seed={seed}]" for seed in GROUPS[group]]
        measured = [self.show(f"{cell}.table")["summary"] for cell in cells]
        models = [name for name, value in measured[0].items() if isinstance(value, dict) and numbers(value)]
        rows = []
        for model in models:
            row = [model]
            if model == "untuned":
                row += ["0", "", ""]
            else:
                made = [self.show(f"{cell}.{model}")["provenance"] for cell in cells]
                count = self.trained.get(f"{cells[0]}.{model}")
                seconds = statistics.mean(one["milliseconds"] / 1000 for one in made)
                memory = max(one.get("peak_memory") or 0 for one in made)
                row += ["?" if count is None else f"{count:,}", f"{seconds:.0f} s", f"{memory / 1e9:.2f} GB"]
            for name in numbers(measured[0][model]):
                row.append(spread([one[model][name] for one in measured]))
            rows.append(row)
        rows.sort(key=lambda row: int(row[1].replace(",", "")) if row[1] != "?" else -1)
        return [["method", "trained", "time", "memory", *numbers(measured[0][models[0]])], *rows]


def numbers(of_model: dict) -> list[str]:
    """The scores that there are of a model, in the order of the columns."""
    known = ["loss", "perplexity", "token_accuracy", "accuracy", "f1", "mcc", "auc"]
    return [name for name in known if isinstance(of_model.get(name), int | float)]


def spread(values: list[float]) -> str:
    """The mean; of several values also the smallest and the largest."""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Print a Markdown table for each group."""
    levain = sys.argv[1] if len(sys.argv) > 1 else str(CHECKOUT / "target" / "release" / "levain")
    cache = Path(sys.argv[2] if len(sys.argv) > 2 else CHECKOUT / "cache")
    shelf = Shelf(levain, cache.resolve())
    for group in GROUPS:
        head, *rows = shelf.rows(group)
        print(f"\n{group}\n\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        for row in rows:
            print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
