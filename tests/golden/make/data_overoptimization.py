"""Fits of over-optimization (src/data/src/overoptimization.rs) by scipy and numpy, and the best-of-n estimator
(src/data/src/best_of_n.rs) in exact fractions with binomial coefficients.

Pinned: numpy 2.4.6, scipy 1.17.1. Run: python tests/golden/make/data_overoptimization.py
"""

import json
import math
import pathlib
from fractions import Fraction

import numpy as np
import scipy
from scipy.optimize import curve_fit, minimize_scalar

OUT = pathlib.Path(__file__).parent.parent / "data" / "data" / "overoptimization.json"
assert (np.__version__, scipy.__version__) == ("2.4.6", "1.17.1")

LAWS = {
    "best_of_n": lambda d, alpha, beta: d * (alpha - beta * d),
    "rl": lambda d, alpha, beta: d * (alpha - beta * np.log(d)),
}


def fit(name, alpha, beta, count, noise, seed):
    law = LAWS[name]
    draw = np.random.default_rng(seed)
    d = np.sort(draw.uniform(0.05, 4.0, count))
    gain = law(d, alpha, beta) + noise * draw.standard_normal(count)
    found, covariance = curve_fit(law, d, gain, p0=[1.0, 0.1], xtol=1e-15, ftol=1e-15, gtol=1e-15)
    errors = np.sqrt(np.diag(covariance))
    # The same by numpy alone, which is exact for a law that is linear in α and β.
    columns = np.stack([law(d, 1.0, 0.0), law(d, 0.0, 1.0)], 1)
    exact, rest, _, _ = np.linalg.lstsq(columns, gain, rcond=None)
    variance = rest[0] / (count - 2)
    exact_errors = np.sqrt(np.diag(variance * np.linalg.inv(columns.T @ columns)))
    assert np.allclose(found, exact, rtol=1e-6) and np.allclose(errors, exact_errors, rtol=1e-5)
    peak = None
    if exact[1] > 0:
        top = minimize_scalar(lambda x: -law(x, *exact), bounds=(1e-9, 1e3), method="bounded", options={"xatol": 1e-12})
        peak = [float(top.x), float(-top.fun)]
    return {
        "law": name,
        "points": [[0.0, 0.0]] + [[float(x), float(y)] for x, y in zip(d, gain)],
        "alpha": float(exact[0]),
        "beta": float(exact[1]),
        "alpha_error": float(exact_errors[0]),
        "beta_error": float(exact_errors[1]),
        "r2": float(1 - rest[0] / np.sum((gain - gain.mean()) ** 2)),
        "peak": peak,
    }


def pool(size, n, seed):
    """Scores that are multiples of 1/8, without equal proxies: the weight of the i-th is C(i − 1, n − 1)/C(N, n)."""
    draw = np.random.default_rng(seed)
    proxies = [Fraction(int(x), 8) for x in draw.permutation(4 * size)[:size]]
    golds = [Fraction(int(x), 8) for x in draw.integers(-40, 40, size)]
    order = sorted(range(size), key=lambda i: proxies[i])
    subsets = math.comb(size, n)
    weights = [Fraction(math.comb(i, n - 1), subsets) for i in range(size)]
    assert sum(weights) == 1
    return {
        "scores": [[float(p), float(g)] for p, g in zip(proxies, golds)],
        "n": n,
        "proxy": float(sum(w * proxies[i] for w, i in zip(weights, order))),
        "gold": float(sum(w * golds[i] for w, i in zip(weights, order))),
    }


fits = [
    fit("best_of_n", 0.7, 0.12, 7, 0.02, 1),
    fit("best_of_n", 1.9, 0.5, 12, 0.1, 2),
    fit("best_of_n", 0.3, -0.05, 6, 0.01, 3),
    fit("best_of_n", 0.4, 0.09, 4, 0.001, 4),
    fit("rl", 0.7, 0.4, 7, 0.02, 5),
    fit("rl", 1.2, 0.9, 20, 0.1, 6),
    fit("rl", 0.2, -0.1, 6, 0.01, 7),
    fit("rl", 0.5, 0.3, 4, 0.001, 8),
]
pools = [pool(8, 1, 1), pool(8, 3, 2), pool(8, 8, 3), pool(64, 2, 4), pool(64, 16, 5), pool(64, 64, 6), pool(200, 100, 7)]
text = json.dumps({"made_by": {"numpy": np.__version__, "scipy": scipy.__version__}, "fits": fits, "pools": pools})
OUT.write_text(text.replace('{"law"', '\n{"law"').replace('{"scores"', '\n{"scores"') + "\n")
