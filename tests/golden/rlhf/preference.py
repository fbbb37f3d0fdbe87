"""Golden values of preference losses: TRL's own DPO, CPO (SimPO, AlphaPO), ORPO, KTO and reward-model code on given logits.

Usage: OMP_NUM_THREADS=1 python tests/golden/rlhf/preference.py (the environment of tests/interop/requirements.txt)

pairs.safetensors, the inputs of all cases. Rows 0-3 are the chosen sides of four pairs, rows 4-7 the rejected sides, padded on
the right with token 0; logits at position t predict token t+1.
    input_ids, attention_mask, completion_mask    i64 [8, 8]
    policy_logits, reference_logits               f64 [8, 8, 11]
    kl_input_ids, kl_attention_mask, kl_completion_mask, kl_policy_logits, kl_reference_logits
        KTO's mismatched rows: row i has the prompt of row i and the completion of row i-1 (row 0 that of row 7)
    rewards, margins                              f64 [8], [4]: scalar rewards of the eight rows, margins of the four pairs
dpo, dpo_divergences, cpo, orpo, kto, reward_model (.safetensors and .jsonl), a case each line and array:
    gradient/CASE    the gradient of the loss with respect to policy_logits [8, 8, 11] (reward_model: to rewards [8])
    {"case", "settings", "dtype", "f32_distance", "loss", "metrics"}; metrics under TRL's names
KTO's settings also say: labels (of the eight rows), and kl "exchanged" where the policy and the reference of the KL rows
change places, so that the estimate is below zero and clamped.

Values are f64. DPO and KTO take log-probabilities from TRL's fused head, which computes in f32: here they come from TRL's
`selective_log_softmax` on f64 logits, and the same case with the fused head in f32 has to agree; `f32_distance` says how
closely. ORPO rounds log-probabilities to f32, which is left out. The alpha divergence refuses f64: its cases are f32 only,
and their f32_distance is null.
"""

import contextlib
from collections import defaultdict
from types import SimpleNamespace

import torch
from common import Golden, bare, bits, numbers, relative, run, settings
from torch.nn import functional as F
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head, entropy_from_logits, selective_log_softmax

VOCABULARY, WIDTH, PAIRS = 11, 8, 4
PROMPTS = [3, 1, 2, 4]
CHOSEN, REJECTED = [2, 5, 6, 3], [4, 1, 3, 3]
LABELS = [True, False, True, True, False, True, False, False]


def rows(prompts, completions):
    """Token ids padded on the right, the mask of what is not padding, the mask of completions."""
    ids, attention, completion = (torch.zeros(len(prompts), WIDTH + 2, dtype=torch.int64) for _ in range(3))
    for row, (prompt, answer) in enumerate(zip(prompts, completions, strict=True)):
        length = len(prompt) + len(answer)
        ids[row, :length] = torch.tensor(prompt + answer)
        attention[row, :length] = 1
        completion[row, len(prompt) : length] = 1
    width = int(attention.sum(1).max())
    return ids[:, :width], attention[:, :width], completion[:, :width]


def words(name, count):
    """Token ids, none of them that of padding."""
    return [1 + int(value) % (VOCABULARY - 1) for value in bits(name, count)]


def inputs():
    """pairs.safetensors."""
    prompts = [words(f"prompt {row % PAIRS}", length) for row, length in enumerate(PROMPTS * 2)]
    answers = [words(f"answer {row}", length) for row, length in enumerate(CHOSEN + REJECTED)]
    made = {}
    for prefix, completions in [("", answers), ("kl_", answers[-1:] + answers[:-1])]:
        ids, attention, completion = rows(prompts, completions)
        shape = (*ids.shape, VOCABULARY)
        made[prefix + "input_ids"], made[prefix + "attention_mask"] = ids, attention
        made[prefix + "completion_mask"] = completion
        made[prefix + "reference_logits"] = numbers(prefix + "reference", shape, 2.0)
        # Near the reference, as a policy in training is.
        made[prefix + "policy_logits"] = made[prefix + "reference_logits"] + numbers(prefix + "the policy", shape, 1.2)
    # The policy likes the words of the mismatched rows more than the reference does: KTO's estimate is above zero.
    likes = F.one_hot(made["kl_input_ids"][:, 1:], VOCABULARY)
    made["kl_policy_logits"][:, :-1] += 0.7 * likes
    assert made["input_ids"].shape == (2 * PAIRS, WIDTH)
    made["rewards"], made["margins"] = numbers("rewards", (2 * PAIRS,), 2.0), numbers("margins", (PAIRS,), 1.0).abs()
    return made


INPUTS = inputs()


class Given(torch.nn.Module):
    """A language model whose last hidden states are given logits and whose head is the identity."""

    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())
    is_gradient_checkpointing = False

    def __init__(self, dtype, logits, outputs):
        super().__init__()
        self.pairs = logits
        self.outputs = outputs
        self.head = torch.nn.Linear(VOCABULARY, VOCABULARY, bias=False, dtype=dtype)
        self.head.weight = torch.nn.Parameter(torch.eye(VOCABULARY, dtype=dtype), requires_grad=False)
        if dtype == torch.float32:
            add_fused_lm_head(self, outputs=outputs)

    def get_output_embeddings(self):
        return self.head

    def base_model(self, input_ids, **_):
        return SimpleNamespace(last_hidden_state=self.logits_of(input_ids))

    def logits_of(self, input_ids):
        """The logits that belong to these rows."""
        found = [logits for ids, logits in self.pairs if ids.shape == input_ids.shape and torch.equal(ids, input_ids)]
        assert len(found) == 1
        return found[0]

    def forward(self, input_ids, labels=None, fused_lm_head=False, **_):
        logits = self.logits_of(input_ids)
        if not fused_lm_head:
            return SimpleNamespace(logits=logits)
        logits, labels = logits[:, :-1], labels[:, 1:]
        mask, target = labels != -100, labels.clamp(min=0)
        made = {"log_probs": selective_log_softmax(logits, target), "entropy": entropy_from_logits(logits)}
        made["mean_logits"], made["is_top1"] = logits.detach().mean(-1), logits.argmax(-1) == target
        made["log_sum_sq_probs"] = (2 * F.log_softmax(logits.detach(), -1)).logsumexp(-1)
        return FusedCausalLMOutput(**{name: made[name].masked_fill(~mask, 0) for name in self.outputs})


def models(dtype, outputs, exchanged=False):
    """The policy's logits as a leaf, the policy and the reference."""
    of = lambda name: INPUTS[name].to(dtype, copy=True)  # noqa: E731
    leaf = of("policy_logits").requires_grad_()
    kl = ["kl_policy_logits", "kl_reference_logits"]
    kl_policy, kl_reference = map(of, reversed(kl) if exchanged else kl)
    policy = Given(dtype, [(INPUTS["input_ids"], leaf), (INPUTS["kl_input_ids"], kl_policy)], outputs)
    reference = [(INPUTS["input_ids"], of("reference_logits")), (INPUTS["kl_input_ids"], kl_reference)]
    return leaf, policy, Given(dtype, reference, ("log_probs",))


LOGGED = dict(aux_loss_enabled=False, _total_train_tokens=0, _tp_size=1, precompute_ref_logps=False)


def dpo(dtype, **changes):
    """`DPOTrainer._compute_loss`."""
    args = settings(DPOConfig, **changes)
    outputs = ("log_probs", "entropy", "mean_logits", "is_top1") + ("log_sum_sq_probs",) * args.use_weighting
    leaf, policy, reference = models(dtype, outputs)
    names = ["beta", "ld_alpha", "f_divergence_type", "f_alpha_divergence_coef", "label_smoothing", "use_weighting"]
    trainer = bare(
        DPOTrainer, args=args, model=policy, ref_model=reference, loss_types=args.loss_type,
        loss_weights=args.loss_weights or [1.0] * len(args.loss_type), _metrics={"train": defaultdict(list)},
        **{name: getattr(args, name) for name in names}, **LOGGED,
    )  # fmt: skip
    batch = {name: INPUTS[name] for name in ["input_ids", "attention_mask", "completion_mask"]}
    return trainer._compute_loss(policy, batch, False), leaf, trainer._metrics["train"]


def kto(dtype, labels, kl=None, **changes):
    """`KTOTrainer._compute_loss`."""
    args = settings(KTOConfig, **changes)
    leaf, policy, reference = models(dtype, ("log_probs", "entropy", "mean_logits"), kl == "exchanged")
    names = ["beta", "loss_type", "desirable_weight", "undesirable_weight"]
    trainer = bare(
        KTOTrainer, args=args, model=policy, ref_model=reference, calculate_KL=args.loss_type == "kto",
        _metrics={"train": defaultdict(list)}, **{name: getattr(args, name) for name in names}, **LOGGED,
    )  # fmt: skip
    batch = {name: INPUTS[name] for name in ["input_ids", "attention_mask", "completion_mask"]}
    batch |= {f"KL_{name}": INPUTS[f"kl_{name}"] for name in list(batch)} | {"label": torch.tensor(labels)}
    return trainer._compute_loss(policy, batch, False), leaf, trainer._metrics["train"]


def sides():
    """The pairs as the older trainers take them."""
    batch = {}
    for side, part in [("chosen", slice(0, PAIRS)), ("rejected", slice(PAIRS, 2 * PAIRS))]:
        for name in ["input_ids", "attention_mask"]:
            batch[f"{side}_{name}"] = INPUTS[name][part]
        batch[f"{side}_labels"] = INPUTS["input_ids"].masked_fill(INPUTS["completion_mask"] == 0, -100)[part]
    return batch


def cpo(dtype, **changes):
    """`CPOTrainer.compute_loss`, and SimPO's and AlphaPO's, which are settings of it."""
    args = settings(CPOConfig, **changes)
    leaf, policy, _ = models(dtype, ())
    names = ["beta", "label_smoothing", "loss_type", "cpo_alpha", "simpo_gamma", "alpha"]
    trainer = bare(
        CPOTrainer, args=args, pad_token_id=0, is_encoder_decoder=False, aux_loss_enabled=False,
        _peft_has_been_casted_to_bf16=False, _stored_metrics=defaultdict(lambda: defaultdict(list)),
        **{name: getattr(args, name) for name in names},
    )  # fmt: skip
    return trainer.compute_loss(policy, sides()), leaf, trainer._stored_metrics["train"]


@contextlib.contextmanager
def unrounded(dtype):
    """`Tensor.float` leaves f64 as it is."""
    plain = torch.Tensor.float
    if dtype == torch.float64:
        torch.Tensor.float = lambda self: self if self.dtype == torch.float64 else plain(self)
    try:
        yield
    finally:
        torch.Tensor.float = plain


def orpo(dtype, **changes):
    """`ORPOTrainer.compute_loss`."""
    args = settings(ORPOConfig, **changes)
    leaf, policy, _ = models(dtype, ())
    trainer = bare(
        ORPOTrainer, args=args, beta=args.beta, padding_value=0, is_encoder_decoder=False, aux_loss_enabled=False,
        _peft_has_been_casted_to_bf16=False, _stored_metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip
    with unrounded(dtype):
        return trainer.compute_loss(policy, sides()), leaf, trainer._stored_metrics["train"]


def reward_model(dtype, margins=False, **changes):
    """`RewardTrainer.compute_loss`."""
    args = settings(RewardConfig, **changes)
    leaf = INPUTS["rewards"].to(dtype, copy=True).requires_grad_()
    model = SimpleNamespace(training=True)
    trainer = bare(RewardTrainer, args=args, model=model, _metrics={"train": defaultdict(list)}, **LOGGED)
    batch = {name: INPUTS[name] for name in ["input_ids", "attention_mask"]}
    batch |= {"margin": INPUTS["margins"].to(dtype)} if margins else {}
    return trainer.compute_loss(lambda **_: SimpleNamespace(logits=leaf.unsqueeze(-1)), batch), leaf, trainer._metrics["train"]


MIX = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}
PLAIN = ["sigmoid", "hinge", "ipo", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero",
         "apo_down", "discopop", "sft", "sigmoid_norm"]  # fmt: skip
SMOOTHED = ["exo_pair", "robust", "aot", "aot_unpaired"]
DPO = {
    **{kind: {"loss_type": [kind]} for kind in PLAIN},
    "exo_pair": {"loss_type": ["exo_pair"], "label_smoothing": 1e-3},
    **{f"{kind}_smoothed": {"loss_type": [kind], "label_smoothing": 0.1} for kind in SMOOTHED},
    **{f"{kind}_beta": {"loss_type": [kind], "beta": 0.5} for kind in ["sigmoid", "hinge", "ipo", "sppo_hard", "discopop"]},
    **{f"{kind}_ld": {"loss_type": [kind], "ld_alpha": 0.3} for kind in ["sigmoid", "ipo", "aot"]},
    **{f"{kind}_weighted": {"loss_type": [kind], "use_weighting": True} for kind in ["sigmoid", "apo_zero"]},
    "mix": MIX,
    "mix_ld": {**MIX, "ld_alpha": 0.3},
    # TRL cannot weight `sft`: it writes to an expanded tensor.
    "mix_ld_weighted": {"loss_type": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2], "ld_alpha": 0.3, "use_weighting": True},
}
DIVERGENCES = {
    "forward_kl": {"f_divergence_type": "forward_kl"},
    "js": {"f_divergence_type": "js_divergence"},
    "alpha_0.5": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
    "alpha_0.3": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
}
SMOOTHING = {"exo_pair": 1e-3, "robust": 0.1}
DPO_DIVERGENCES = {
    f"{kind}_{name}": {"loss_type": [kind], **divergence, **({"label_smoothing": SMOOTHING[kind]} if kind in SMOOTHING else {})}
    for name, divergence in DIVERGENCES.items()
    for kind in ["sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"]
}
CPO = {
    "sigmoid": {"loss_type": "sigmoid"},
    "sigmoid_smoothed": {"loss_type": "sigmoid", "label_smoothing": 0.1},
    "sigmoid_alone": {"loss_type": "sigmoid", "cpo_alpha": 0.0},
    "hinge": {"loss_type": "hinge"},
    "hinge_beta": {"loss_type": "hinge", "beta": 0.5, "cpo_alpha": 0.0},
    "ipo": {"loss_type": "ipo"},
    "simpo": {"loss_type": "simpo", "simpo_gamma": 0.5, "cpo_alpha": 1.0},
    "simpo_alone": {"loss_type": "simpo", "simpo_gamma": 0.5, "cpo_alpha": 0.0},
    "simpo_beta": {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0},
    "simpo_smoothed": {"loss_type": "simpo", "simpo_gamma": 0.5, "cpo_alpha": 0.0, "label_smoothing": 0.1},
    "alphapo": {"loss_type": "alphapo", "alpha": 0.25, "beta": 2.0, "simpo_gamma": 0.5},
    "alphapo_negative": {"loss_type": "alphapo", "alpha": -0.25, "beta": 2.0, "simpo_gamma": 0.5},
    "sigmoid_alpha": {"loss_type": "sigmoid", "alpha": 0.1, "cpo_alpha": 0.5},
}
ORPO = {"orpo": {}, "orpo_beta": {"beta": 1.0}}
BOTH, DESIRED, UNDESIRED = {"labels": LABELS}, {"labels": [True] * 8}, {"labels": [False] * 8}
WEIGHTS = {"desirable_weight": 1.33, "undesirable_weight": 0.8}
KTO = {
    "kto": BOTH,
    "kto_weights": BOTH | WEIGHTS,
    "kto_beta": BOTH | {"beta": 0.5},
    "kto_clamped": BOTH | {"kl": "exchanged"},
    "kto_desirable": DESIRED | WEIGHTS,
    "kto_undesirable": UNDESIRED | WEIGHTS,
    **{f"apo_zero_unpaired{name}": sides | {"loss_type": "apo_zero_unpaired"} for name, sides in
       [("", BOTH), ("_weights", BOTH | WEIGHTS), ("_desirable", DESIRED | WEIGHTS), ("_undesirable", UNDESIRED | WEIGHTS)]},
}  # fmt: skip
REWARD_MODEL = {
    "plain": {},
    "margins": {"margins": True},
    "centered": {"center_rewards_coefficient": 0.01},
    "margins_centered": {"margins": True, "center_rewards_coefficient": 0.01},
}

if __name__ == "__main__":
    golden = Golden(trl="1.16.0")
    golden.arrays("pairs", INPUTS)
    arrays, logged = run(golden, "dpo", dpo, DPO)
    assert 0 < logged["sigmoid"]["rewards/accuracies"] < 1, "all pairs are on one side"
    assert not arrays["gradient/hinge_beta"].flatten(1).any(1).all(), "no pair is beyond the hinge"
    for kind in ["aot", "aot_unpaired"]:
        assert relative(arrays[f"gradient/{kind}"], arrays["gradient/sigmoid"]) > 0.1, f"{kind} sorts what is sorted"
    # TRL's sigmoid takes no notice of label smoothing.
    assert torch.equal(*(dpo(torch.float32, loss_type=["sigmoid"], label_smoothing=e)[0] for e in [0.0, 0.1]))
    refused = [case for case, changes in DPO_DIVERGENCES.items() if changes["f_divergence_type"] == "alpha_divergence"]
    run(golden, "dpo_divergences", dpo, DPO_DIVERGENCES, refused)
    arrays, logged = run(golden, "cpo", cpo, CPO)
    assert not arrays["gradient/hinge_beta"].flatten(1).any(1).all(), "no pair is beyond CPO's hinge"
    assert 0 < logged["simpo"]["rewards/accuracies"] < 1, "all pairs are on one side by their averages"
    run(golden, "orpo", orpo, ORPO)
    _, logged = run(golden, "kto", kto, KTO)
    assert logged["kto"]["kl"] > 0 == logged["kto_clamped"]["kl"], "the clamp has nothing to do"
    run(golden, "reward_model", reward_model, REWARD_MODEL)
    golden.close()
