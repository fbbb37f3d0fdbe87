"""What predictions are worth (src/data/src/classification.rs) by scikit-learn and scipy.

Pinned: scikit-learn 1.9.1, scipy 1.17.1, numpy 2.4.6. Run: python tests/golden/make/classification.py
Logits are rounded before they are normalized, so that some log-probabilities are equal.
"""

import hashlib
import importlib.metadata
import json
import math
import pathlib
import warnings

import numpy
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics

PINNED = {"scikit-learn": "1.9.1", "scipy": "1.17.1", "numpy": "2.4.6"}
OUT = pathlib.Path(__file__).parent.parent / "data" / "classification" / "metrics.json"


def number(value):
    """What is not defined is nan in both packages."""
    return None if math.isnan(value) else float(value)


def area(truth, scores):
    """The area under the ROC curve by log-probabilities: of two classes by the second's odds, of more each against the rest."""
    there = set(truth.tolist())
    if len(there) < scores.shape[1]:
        return math.nan
    if scores.shape[1] == 2:
        return metrics.roc_auc_score(truth, scores[:, 1] - scores[:, 0])
    each = numpy.mean([metrics.roc_auc_score(truth == k, scores[:, k]) for k in range(scores.shape[1])])
    # Probabilities of different logarithms may be equal: a tie is half a step of the curve.
    theirs = metrics.roc_auc_score(truth, numpy.exp(scores), multi_class="ovr", average="macro", labels=list(range(scores.shape[1])))
    assert abs(each - theirs) < 2e-3, (each, theirs)
    return each


def classes(name, truth, logits):
    """One case of classes."""
    truth = numpy.array(truth)
    logits = numpy.array(logits, dtype=numpy.float64)
    scores = logits - numpy.log(numpy.exp(logits).sum(axis=1, keepdims=True))
    predicted = scores.argmax(axis=1)
    count = scores.shape[1]
    every = list(range(count))
    f1 = metrics.f1_score(truth, predicted, pos_label=1, zero_division=numpy.nan) if count == 2 else None
    f1_macro = metrics.f1_score(truth, predicted, average="macro")
    return {
        "name": name,
        "truth": truth.tolist(),
        "log_probabilities": scores.tolist(),
        "accuracy": metrics.accuracy_score(truth, predicted),
        "majority": numpy.bincount(truth).max() / len(truth),
        "f1": number(f1) if count == 2 else float(f1_macro),
        "f1_macro": float(f1_macro),
        "mcc": float(metrics.matthews_corrcoef(truth, predicted)),
        "auc": number(area(truth, scores)),
        "loss": float(metrics.log_loss(truth, numpy.exp(scores), labels=every)),
        "confusion": metrics.confusion_matrix(truth, predicted, labels=every).tolist(),
    }


def numbers(name, truth, predicted):
    """One case of numbers."""
    truth, predicted = numpy.array(truth, dtype=float), numpy.array(predicted, dtype=float)
    flat = len(set(truth.tolist())) == 1
    either = flat or len(set(predicted.tolist())) == 1
    return {
        "name": name,
        "truth": truth.tolist(),
        "predicted": predicted.tolist(),
        "mse": float(metrics.mean_squared_error(truth, predicted)),
        "mae": float(metrics.mean_absolute_error(truth, predicted)),
        "r2": None if flat else float(metrics.r2_score(truth, predicted)),
        "pearson": None if either else float(pearsonr(truth, predicted)[0]),
        "spearman": None if either else float(spearmanr(truth, predicted)[0]),
    }


def drawn(seed, rows, count, noise, digits=1):
    """Labels, and logits that know them as well as the noise lets; rounded, so that there are ties."""
    rng = numpy.random.default_rng(seed)
    truth = rng.integers(0, count, rows)
    logits = rng.normal(0, noise, (rows, count)) + numpy.eye(count)[truth]
    return truth.tolist(), numpy.round(logits, digits).tolist()


def measured(seed, rows, noise, digits=1):
    """Numbers and what somebody took them for, both rounded."""
    rng = numpy.random.default_rng(seed)
    truth = numpy.round(rng.normal(5, 2, rows), digits)
    return truth.tolist(), numpy.round(0.8 * truth + rng.normal(0, noise, rows), digits).tolist()


def main():
    for package, version in PINNED.items():
        found = importlib.metadata.version(package)
        assert found == version, f"{package} {found}, not {version}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of_classes = [
            classes("two", *drawn(1, 60, 2, 1.0)),
            classes("two, many ties", *drawn(2, 80, 2, 0.6, 0)),
            classes("two, sure of everything", *drawn(3, 40, 2, 0.01)),
            classes("two by chance", *drawn(4, 50, 2, 3.0)),
            classes("two, always the first", [0, 1, 0, 1, 1], [[2, 0], [1, 0], [3, 0], [1, 0.5], [0.5, 0]]),
            classes("two, one in the truth", [1, 1, 1], [[0, 1], [1, 0], [0, 2]]),
            classes("two, neither there nor said", [0, 0], [[1, 0], [2, 0]]),
            classes("two, always wrong", [0, 1, 0, 1], [[0, 1], [1, 0], [0, 1], [1, 0]]),
            classes("two, one row", [1], [[0, 1]]),
            classes("three", *drawn(5, 90, 3, 1.0)),
            classes("five", *drawn(6, 120, 5, 0.8)),
            classes("five, ties", *drawn(7, 60, 5, 1.0, 0)),
            classes("three, one is not there", [0, 2, 0, 2, 2, 0], [[2, 0, 1], [0, 1, 2], [1, 0, 0], [0, 3, 1], [0, 0, 1], [0, 0, 1]]),
            classes("three, one neither there nor said", [0, 2, 0, 2], [[2, 0, 1], [0, 1, 2], [1, 0, 3], [0, 0, 1]]),
        ]
        of_numbers = [
            numbers("near", *measured(1, 50, 0.5)),
            numbers("far", *measured(2, 50, 5.0)),
            numbers("ties", *measured(3, 60, 1.0, 0)),
            numbers("exact", [1, 2, 4], [1, 2, 4]),
            numbers("upside down", [1, 2, 4, 7], [4, 2, 1, -3]),
            numbers("worse than the mean", [1, 2, 3], [3, 2, 1]),
            numbers("one truth", [2, 2, 2], [1, 2, 3]),
            numbers("one prediction", [1, 2, 3], [2, 2, 2]),
            numbers("one row", [1], [2]),
            numbers("far from zero", [1e6 + 1, 1e6 + 2, 1e6 + 4], [1e6 + 1.5, 1e6 + 1, 1e6 + 5]),
        ]
    made_by = {
        "script": pathlib.Path(__file__).name,
        "script_sha256": hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest(),
        "packages": PINNED,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    lists = {"classes": of_classes, "numbers": of_numbers}
    body = ",\n".join(f' "{key}": [\n' + ",\n".join("  " + json.dumps(case) for case in cases) + "\n ]" for key, cases in lists.items())
    OUT.write_text(f'{{\n "made_by": {json.dumps(made_by)},\n{body}\n}}\n')


main()
