"""Agreement of annotators (src/data/src/agreement.rs): Cohen's kappa by scikit-learn, Fleiss' kappa by statsmodels.

Pinned: scikit-learn 1.9.1, statsmodels 0.15.0, numpy 2.4.6. Run: python tests/golden/make/agreement.py
"""

import hashlib
import importlib.metadata
import json
import math
import pathlib
import random
import warnings

import numpy
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

PINNED = {"scikit-learn": "1.9.1", "statsmodels": "0.15.0", "numpy": "2.4.6"}
OUT = pathlib.Path(__file__).parent.parent / "data" / "agreement" / "kappa.json"


def number(value):
    """Undefined kappas are nan in both packages."""
    return None if math.isnan(value) else float(value)


def raw(ratings):
    """The mean over items of the share of pairs of annotators that agree, pair by pair."""
    pairs = [(a, b) for i, a in enumerate(ratings) for b in ratings[i + 1 :]]
    return sum(x == y for a, b in pairs for x, y in zip(a, b)) / (len(pairs) * len(ratings[0]))


def case(name, ratings):
    entry = {"name": name, "ratings": ratings, "raw": raw(ratings)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if len(ratings) == 2:
            entry["cohen"] = number(cohen_kappa_score(ratings[0], ratings[1]))
        table, _ = aggregate_raters(numpy.array(ratings).T)
        entry["fleiss"] = number(fleiss_kappa(table, method="fleiss"))
    return entry


def drawn(seed, annotators, items, noise):
    """Everybody sees the same truth, and answers at random as often as `noise`."""
    rng = random.Random(seed)
    truth = [rng.choice([0, 0, 1, 1, 2]) for _ in range(items)]
    return [[rng.choice([0, 1, 2]) if rng.random() < noise else t for t in truth] for _ in range(annotators)]


def main():
    for package, version in PINNED.items():
        found = importlib.metadata.version(package)
        assert found == version, f"{package} {found}, not {version}"
    # Fleiss 1971, table 1 in the shape that Wikipedia retells: 10 subjects, 14 raters, 5 categories, kappa 0.210.
    table = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]
    rows = [[category for category, count in enumerate(row) for _ in range(count)] for row in table]
    assert abs(fleiss_kappa(numpy.array(table)) - 0.210) < 5e-4
    cases = [
        case("textbook", [list(column) for column in zip(*rows)]),
        case("two who mostly agree", drawn(1, 2, 40, 0.3)),
        case("two by chance", drawn(2, 2, 40, 1.0)),
        case("two who never agree", [[0, 1, 0, 1, 2], [1, 0, 1, 0, 1]]),
        case("two with habits of their own", [[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1]]),
        case("two who always agree", [[0, 1, 2, 0], [0, 1, 2, 0]]),
        case("one category", [[1, 1, 1], [1, 1, 1]]),
        case("one category but once", [[1, 1, 1, 1], [1, 1, 1, 0]]),
        case("one item, equal", [[2], [2]]),
        case("one item, different", [[0], [1]]),
        case("three", drawn(3, 3, 50, 0.4)),
        case("five", drawn(4, 5, 30, 0.5)),
        case("three of one category", [[0, 0], [0, 0], [0, 0]]),
        case("three, one item", [[0], [0], [1]]),
    ]
    made_by = {
        "script": pathlib.Path(__file__).name,
        "script_sha256": hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest(),
        "packages": PINNED,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join("  " + json.dumps(entry) for entry in cases)
    OUT.write_text(f'{{\n "made_by": {json.dumps(made_by)},\n "cases": [\n{lines}\n ]\n}}\n')


main()
