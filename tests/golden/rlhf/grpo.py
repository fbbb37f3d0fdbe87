"""Golden values of GRPO and RLOO: TRL's own advantages, losses and metrics on given rewards and log-probabilities.

Usage: OMP_NUM_THREADS=1 python tests/golden/rlhf/grpo.py (the environment of tests/interop/requirements.txt)

grpo_inputs.safetensors, the inputs of all cases: three groups of four completions, up to six tokens, padded on the right.
    completion_ids, completion_mask         i64 [12, 6]; 2 ends a completion; row 8 is cut off at six tokens without it
    rewards                                 f64 [12]; those of the second group (rows 4-7) are all equal
    policy_logps, old_logps, ref_logps      f64 [12, 6], log-probabilities of the tokens, 0 in the padding
    entropies                               f64 [12, 6], what the policy's entropies are taken to be
grpo, rloo (.safetensors and .jsonl), a case each line and arrays:
    gradient/CASE      [12, 6]  of the loss with respect to policy_logps
    advantages/CASE    [12]     as TRL makes them from the rewards (RLOO: from rewards and the KL between old and reference)
    {"case", "settings", "dtype", "f32_distance", "loss", "metrics"}; metrics under TRL's names
In settings, on_policy is ours: the old log-probabilities are those of the policy (TRL then takes them from the loss's own
forward pass); and with gradient_accumulation_steps 2 rows 0-5 and 6-11 are two micro-batches, the loss is the sum of theirs and
the metrics the mean of theirs. Rewards are f64 here; TRL's own gathering would round them to f32.
"""

from collections import defaultdict, deque
from types import SimpleNamespace

import torch
from common import Golden, bare, bits, numbers, run, settings
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import split_tensor_dict

GROUPS, GENERATIONS, WIDTH, END = 3, 4, 6, 2
LENGTHS = [3, 6, 1, 4, 2, 6, 5, 3, 6, 2, 4, 5]
CUT = 8
"""The row that reaches its limit."""
ROWS = GROUPS * GENERATIONS


def inputs():
    """grpo_inputs.safetensors."""
    ids, mask = torch.zeros(ROWS, WIDTH, dtype=torch.int64), torch.zeros(ROWS, WIDTH, dtype=torch.int64)
    for row, length in enumerate(LENGTHS):
        words = [3 + int(value) % 8 for value in bits(f"completion {row}", length)]
        ids[row, :length] = torch.tensor(words if row == CUT else words[:-1] + [END])
        mask[row, :length] = 1
    old = -numbers("old", (ROWS, WIDTH), 2.0).abs() - 0.1
    rewards = numbers("rewards", (ROWS,), 2.0)
    rewards[GENERATIONS : 2 * GENERATIONS] = 0.75
    return {
        "completion_ids": ids, "completion_mask": mask, "rewards": rewards, "old_logps": old * mask,
        "policy_logps": (old + numbers("moved", (ROWS, WIDTH), 0.6)) * mask,
        "ref_logps": (old + numbers("reference", (ROWS, WIDTH), 0.6)) * mask,
        "entropies": numbers("entropies", (ROWS, WIDTH), 1.5).abs() * mask,
    }  # fmt: skip


INPUTS = inputs()


OWN = {
    GRPOTrainer: ["loss_type", "scale_rewards", "importance_sampling_level", "multi_objective_aggregation",
                  "top_entropy_quantile", "off_policy_mask_threshold"],
    RLOOTrainer: ["normalize_advantages", "reward_clip_range"],
}  # fmt: skip


def trained(trainer_kind, config_kind, dtype, on_policy=False, **changes):
    """Samples that are given, scored and split by the trainer, and its loss over all micro-batches."""
    steps = changes.get("gradient_accumulation_steps", 1)
    # Samples that are used twice are what makes TRL keep the old log-probabilities.
    reuse = {"num_iterations": 1 if on_policy else 2}
    args = settings(config_kind, per_device_train_batch_size=ROWS // steps, num_generations=GENERATIONS,
                    max_completion_length=WIDTH, **reuse, **changes)  # fmt: skip
    values = {name: value.to(dtype) if value.is_floating_point() else value for name, value in INPUTS.items()}
    leaf = values["policy_logps"].clone().requires_grad_()
    policy = SimpleNamespace(training=True, is_gradient_checkpointing=False)
    taken = []

    def logps(model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **_):
        """In the place of a forward pass; with entropies it is the loss's own, micro-batch after micro-batch."""
        if model is not policy:
            return values["ref_logps"], None, None
        if not compute_entropy:
            return values["policy_logps" if on_policy else "old_logps"], None, None
        rows = slice(sum(taken), sum(taken) + len(input_ids))
        taken.append(len(input_ids))
        return leaf[rows], values["entropies"][rows], None

    def generate(prompts):
        """Token ids and completions; GRPO's are followed by what tools and images would add."""
        ids = [row[:length].tolist() for row, length in zip(values["completion_ids"], LENGTHS, strict=True)]
        prompt = [[3, 4] for _ in prompts]
        return (prompt, ids, None, ids, None, {}, None, None) if trainer_kind is GRPOTrainer else (prompt, ids, ids)

    names = ["beta", "num_iterations", "mask_truncated_completions", *OWN[trainer_kind]]
    trainer = bare(
        trainer_kind, args=args, model=policy, ref_model=object(), environment_factories=None, environments=None, tools=None,
        _tokenizer=SimpleNamespace(pad_token_id=0), eos_token_ids=[END], pad_to_multiple_of=None, use_vllm=False,
        num_generations=GENERATIONS, max_completion_length=WIDTH, epsilon_low=args.epsilon, reward_weights=torch.ones(1),
        epsilon_high=args.epsilon if args.epsilon_high is None else args.epsilon_high, reward_func_names=["given"],
        aux_loss_enabled=False, _entropy_bonus_enabled=False, current_gradient_accumulation_steps=steps, log_multimodal=False,
        _metrics={"train": defaultdict(list)}, _logs=defaultdict(deque, rewards=defaultdict(deque)), _pending_extra_logs={},
        _pending_metrics={}, _generate=generate, _get_per_token_logps_and_entropies=logps,
        _calculate_rewards=lambda *_: values["rewards"].unsqueeze(1), **{name: getattr(args, name) for name in names},
    )  # fmt: skip
    batch = trainer._generate_and_score_completions([{"prompt": f"{row // GENERATIONS}"} for row in range(ROWS)])
    if trainer_kind is GRPOTrainer:
        assert ("old_per_token_logps" in batch) != on_policy
    loss = sum(trainer._compute_loss(policy, part) for part in split_tensor_dict(batch, steps))
    assert sum(taken) == ROWS
    logged = {key: found for key, found in trainer._metrics["train"].items() if not key.startswith("rewards/")}
    return loss, leaf, logged, {"advantages": batch["advantages"]}


def grpo(dtype, **changes):
    """`GRPOTrainer._generate_and_score_completions` and `_compute_loss`."""
    return trained(GRPOTrainer, GRPOConfig, dtype, **changes)


def rloo(dtype, **changes):
    """`RLOOTrainer._generate_and_score_completions` and `_compute_loss`."""
    return trained(RLOOTrainer, RLOOConfig, dtype, **changes)


KINDS = ["grpo", "bnpo", "dr_grpo", "dapo"]
GRPO = {
    **{kind: {"loss_type": kind} for kind in KINDS},
    **{f"{kind}_beta": {"loss_type": kind, "beta": 0.04} for kind in KINDS},
    **{f"{kind}_truncated": {"loss_type": kind, "mask_truncated_completions": True} for kind in KINDS},
    **{f"{kind}_micro": {"loss_type": kind, "gradient_accumulation_steps": 2} for kind in KINDS},
    "scale_batch": {"loss_type": "dapo", "scale_rewards": "batch"},
    "scale_none": {"loss_type": "dapo", "scale_rewards": "none"},
    "clip_higher": {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28},
    "clip_uneven": {"loss_type": "dapo", "epsilon": 0.05, "epsilon_high": 0.8},
    "on_policy": {"loss_type": "dapo", "on_policy": True},
    "on_policy_beta": {"loss_type": "dapo", "beta": 0.04, "on_policy": True},
    "beta_uncorrected": {"loss_type": "dapo", "beta": 0.04, "use_bias_correction_kl": False},
    "sequence": {"loss_type": "dapo", "importance_sampling_level": "sequence"},
}
RLOO = {
    "rloo": {"beta": 0.05},
    "no_kl": {"beta": 0.0},
    "normalized": {"beta": 0.05, "normalize_advantages": True},
    "clip_higher": {"beta": 0.05, "epsilon": 0.1, "epsilon_high": 0.5},
    "rewards_clipped": {"beta": 0.05, "reward_clip_range": [-1.0, 1.0]},
    "truncated": {"beta": 0.05, "mask_truncated_completions": True},
}

if __name__ == "__main__":
    golden = Golden(trl="1.16.0")
    golden.arrays("grpo_inputs", INPUTS)
    arrays, logged = run(golden, "grpo", grpo, GRPO)
    assert logged["clip_uneven"]["clip_ratio/high_mean"] < logged["dapo"]["clip_ratio/high_mean"], "nothing is between"
    assert min(logged["dapo"]["clip_ratio/low_mean"], logged["dapo"]["clip_ratio/high_mean"]) > 0, "nothing is clipped"
    assert logged["dapo"]["frac_reward_zero_std"] > 0 and not arrays["advantages/dapo"][GENERATIONS : 2 * GENERATIONS].any()
    _, logged = run(golden, "rloo", rloo, RLOO)
    assert min(logged["rloo"]["clip_ratio/low_mean"], logged["rloo"]["clip_ratio/high_mean"]) > 0, "nothing is clipped"
    golden.close()
