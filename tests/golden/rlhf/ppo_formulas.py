"""Golden values of what PPO's implementations do and TRL's does not: plain formulas in f64, each beside its source.

Usage: OMP_NUM_THREADS=1 python tests/golden/rlhf/ppo_formulas.py (the environment of ppo.py, for its witnesses)

ppo_formulas.safetensors, all f64 unless said:
    gae/rewards, gae/values [3, 7]; gae/lengths i64 [3], beyond which both are 0; gae/GAMMA_LAMBDA/advantages and /returns [3, 7]
        for 1_0.95 and 0.9_0.8
    kl/logprobs, kl/ref_logprobs [12]; kl/k1, kl/k2, kl/k3 [12]; kl/gradient_k1, _k2, _k3 of their sums with respect to logprobs
    entropy/logits [2, 5, 11], entropy/mask i64 [2, 5]; entropy/tokens [2, 5] of every position; entropy/bonus [] = -0.01 times
        their mean under the mask, as it is added to the loss, with entropy/gradient_bonus; entropy/distance [] = 0.01 times
        |mean - 1.5|, with entropy/gradient_distance (gradients with respect to logits)
    adaptive/kl [8], adaptive/coefficients [9]: from 0.15, target 6, horizon 10000, 256 episodes a step; the first is the start
    ptx/logits [2, 6, 11], ptx/labels i64 [2, 6] (of the same position, -100 for none); ptx/loss [] = 27.8 times the mean over the
        labelled tokens, ptx/gradient
    moments/batch_0 .. batch_3 (of 4, 3, 1, 6 scores), and after each moments/mean_N, std_N [], scaled_N, normalised_N,
        clipped_N: the batch divided by std; less the mean and divided; divided and then clipped to 0.8 either way
"""

import math

import torch
from accelerate import Accelerator
from common import HERE, Golden, numbers
from safetensors.torch import load_file
from torch.nn import functional as F
from trl.experimental.bco.bco_trainer import RunningMoments

made = {}


def exact(found, wanted, what):
    """The formula against its witness, to f64's rounding."""
    assert (torch.as_tensor(found) - torch.as_tensor(wanted)).abs().max() < 1e-12, what


def gae(rewards, values, length, gamma, lam):
    """Schulman et al. 2016 (arXiv 1506.02438), equation 16, as written there: a sum over all that follows."""
    advantages = []
    for t in range(length):
        total = 0.0
        for later in range(t, length):
            following = values[later + 1] if later + 1 < length else 0.0
            total += (gamma * lam) ** (later - t) * (rewards[later] + gamma * following - values[later])
        advantages.append(total)
    return advantages


def generalised_advantages():
    """Three rows of unequal lengths; TRL's own of ppo.py are the witness."""
    lengths = [7, 4, 1]
    inside = torch.arange(7) < torch.tensor(lengths).unsqueeze(1)
    rewards, values = numbers("gae rewards", (3, 7), 1.0) * inside, numbers("gae values", (3, 7), 1.0) * inside
    made.update({"gae/rewards": rewards, "gae/values": values, "gae/lengths": torch.tensor(lengths)})
    for gamma, lam in [(1, 0.95), (0.9, 0.8)]:
        advantages = torch.zeros(3, 7, dtype=torch.float64)
        for row, length in enumerate(lengths):
            found = gae(rewards[row].tolist(), values[row].tolist(), length, gamma, lam)
            advantages[row, :length] = torch.tensor(found, dtype=torch.float64)
        made[f"gae/{gamma}_{lam}/advantages"] = advantages
        made[f"gae/{gamma}_{lam}/returns"] = advantages + values
    theirs = load_file(HERE / "ppo.safetensors")
    for case, gamma, lam in [("base", 1.0, 0.95), ("discounted", 0.9, 0.8), ("whitened", 1.0, 0.95)]:
        rewards, values = theirs[f"{case}/rewards"].tolist(), theirs[f"{case}/values"].tolist()
        ours = [gae(*row, 6, gamma, lam) for row in zip(rewards, values, strict=True)]
        exact(torch.tensor(ours, dtype=torch.float64), theirs[f"{case}/advantages_raw"], f"TRL's advantages, {case}")


def estimators():
    """J. Schulman, "Approximating KL divergence" (joschu.net/blog/kl-approx.html), samples of p, r = q/p: k1 = -log r,
    k2 = (log r)^2 / 2, k3 = r - 1 - log r. Here p is the policy and q the reference."""
    logprobs = (-numbers("kl logprobs", (12,), 3.0).abs()).requires_grad_()
    reference = -numbers("kl reference", (12,), 3.0).abs()
    log_ratio = reference - logprobs
    made.update({"kl/logprobs": logprobs, "kl/ref_logprobs": reference})
    for name, value in {"k1": -log_ratio, "k2": log_ratio**2 / 2, "k3": log_ratio.exp() - 1 - log_ratio}.items():
        made[f"kl/{name}"] = value
        (made[f"kl/gradient_{name}"],) = torch.autograd.grad(value.sum(), logprobs, retain_graph=True)


def entropy():
    """The bonus: Schulman et al. 2017 (arXiv 1707.06347), equation 9, c2 S[pi] in the objective, so minus in the loss. The
    distance to a wanted entropy: MOSS-RLHF, ppo/ppo_trainer.py, `criterion` (entropy_clip), |mean - wanted| in the loss."""
    logits = numbers("entropy logits", (2, 5, 11), 2.0).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    logprobs = logits.log_softmax(-1)
    tokens = -(logprobs.exp() * logprobs).sum(-1)
    mean = (tokens * mask).sum() / mask.sum()
    exact(tokens, torch.distributions.Categorical(logits=logits).entropy(), "torch's entropy")
    made.update({"entropy/logits": logits, "entropy/mask": mask, "entropy/tokens": tokens})
    for name, loss in {"bonus": -0.01 * mean, "distance": 0.01 * (mean - 1.5).abs()}.items():
        made[f"entropy/{name}"] = loss
        (made[f"entropy/gradient_{name}"],) = torch.autograd.grad(loss, logits, retain_graph=True)


def adaptive():
    """Ziegler et al. 2019 (arXiv 1909.08593), section 2.2, with openai/lm-human-preferences' horizon
    (lm_human_preferences/train_policy.py, AdaptiveKLController): the error is clipped to 0.2 either way."""
    seen = [2.0, 5.5, 6.0, 6.4, 7.1, 9.0, 30.0, -1.0]
    coefficients = [0.15]
    for current in seen:
        error = max(-0.2, min(0.2, current / 6.0 - 1))
        coefficients.append(coefficients[-1] * (1 + error * 256 / 10000))
    made["adaptive/kl"] = torch.tensor(seen, dtype=torch.float64)
    made["adaptive/coefficients"] = torch.tensor(coefficients, dtype=torch.float64)


def pretraining():
    """Ouyang et al. 2022 (arXiv 2203.02155), equation 2 with that paper's gamma of 27.8; the mean over tokens is that of
    MOSS-RLHF, ppo/ppo_trainer.py, `criterion`."""
    logits = numbers("ptx logits", (2, 6, 11), 2.0).requires_grad_()
    labels = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, -100, -100, -100]])
    counted = labels >= 0
    chosen = logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    loss = -27.8 * (chosen * counted).sum() / counted.sum()
    exact(loss, 27.8 * F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "torch's cross entropy")
    made.update({"ptx/logits": logits, "ptx/labels": labels, "ptx/loss": loss})
    (made["ptx/gradient"],) = torch.autograd.grad(loss, logits)


def moments():
    """MOSS-RLHF, utils.py, RunningMoments, and its use in ppo/ppo_trainer.py, `make_experiences` (use_reward_scaling,
    use_reward_norm, use_reward_clip): the batch itself is counted first; the deviation is that of all scores so far, with
    n - 1. TRL's copy of the class, which rounds to f32, is the witness."""
    running = RunningMoments(Accelerator(cpu=True))
    seen = torch.zeros(0, dtype=torch.float64)
    for index, size in enumerate([4, 3, 1, 6]):
        batch = numbers(f"scores {index}", (size,), 1.0 + index)
        seen = torch.cat([seen, batch])
        mean = seen.sum() / len(seen)
        std = ((seen - mean) ** 2).sum().div(len(seen) - 1).sqrt()
        running.update(batch)
        assert math.isclose(running.mean, mean, rel_tol=1e-5) and math.isclose(running.std, std, rel_tol=1e-5), "TRL's moments"
        found = {"mean": mean, "std": std, "scaled": batch / std, "normalised": (batch - mean) / std}
        found["clipped"] = (batch / std).clamp(-0.8, 0.8)
        made[f"moments/batch_{index}"] = batch
        made.update({f"moments/{name}_{index}": value for name, value in found.items()})
    assert any((made[f"moments/clipped_{index}"].abs() == 0.8).any() for index in range(4)), "nothing is clipped"


if __name__ == "__main__":
    golden = Golden(trl="1.12.0")
    for section in [generalised_advantages, estimators, entropy, adaptive, pretraining, moments]:
        section()
    assert all(value.dtype in [torch.float64, torch.int64] for value in made.values())
    golden.arrays("ppo_formulas", made)
    golden.close()
