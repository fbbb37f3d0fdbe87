"""Golden values of reward losses on rankings: plain formulas in f64, each beside its source.

Usage: OMP_NUM_THREADS=1 python tests/golden/rlhf/reward.py (the environment of tests/interop/requirements.txt)

rankings.safetensors, all f64, for K from 2 to 5 two rankings each, the best answer first:
    scores/K                                        [2, K]
    pairwise/K, plackett_luce/K                     [2]     the loss of each ranking
    pairwise_gradient/K, plackett_luce_gradient/K   [2, K]  of each ranking's loss with respect to its scores
"""

import itertools

import torch
from common import Golden, numbers
from torch.nn import functional as F


def pairwise(scores):
    """Ouyang et al. 2022 (arXiv 2203.02155), equation 1: over all pairs of a ranking, -log sigmoid(better - worse), divided by
    the number of pairs, K(K-1)/2."""
    pairs = list(itertools.combinations(range(len(scores)), 2))
    return -sum(F.logsigmoid(scores[better] - scores[worse]) for better, worse in pairs) / len(pairs)


def plackett_luce(scores):
    """Plackett 1975, Luce 1959, as in Rafailov et al. 2023 (arXiv 2305.18290), appendix A.3: the first is chosen among all, the
    second among the rest, and so on; minus the logarithm of the product of these softmax probabilities."""
    return -sum(scores[place] - scores[place:].logsumexp(0) for place in range(len(scores)))


if __name__ == "__main__":
    golden = Golden(trl=None)
    made = {}
    for length in range(2, 6):
        scores = numbers(f"ranking of {length}", (2, length), 2.0).requires_grad_()
        made[f"scores/{length}"] = scores
        for loss in [pairwise, plackett_luce]:
            losses = torch.stack([loss(row) for row in scores])
            made[f"{loss.__name__}/{length}"] = losses
            (made[f"{loss.__name__}_gradient/{length}"],) = torch.autograd.grad(losses.sum(), scores)
        # The probabilities of all orders sum to one.
        for row in scores.detach():
            total = sum((-plackett_luce(row[list(order)])).exp() for order in itertools.permutations(range(length)))
            assert abs(total - 1) < 1e-12, f"{length}: {total}"
    # Of two, both are the same.
    assert torch.allclose(made["pairwise/2"], made["plackett_luce/2"], rtol=0, atol=1e-15)
    golden.arrays("rankings", made)
    golden.close()
