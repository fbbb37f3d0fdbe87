"""Golden values of PPO: one batch of TRL's own training loop on a tiny Llama, looked at from inside.

Usage: OMP_NUM_THREADS=1 python tests/golden/rlhf/ppo.py (the environment of tests/interop/requirements.txt with trl 1.12.0 in
the place of its trl: the last with this trainer)

The responses are given, everything else is TRL's: sampling is replaced by `ANSWERS`, and old log-probabilities come from TRL's
`forward` of the policy, divided by the temperature 0.7 + 1e-7 as sampling divides them, so that all is f64. The same batch in f32
with transformers' real `generate`, whose multinomial draws are given, has to agree. Everybody's weights are the formula of
../make/ml_common.py under the parameter's name: `weight(NAME)` for the policy, plus `numbers("reference NAME", shape, 0.2)` for
the reference, `weight("value NAME")` and `weight("reward NAME")` for the two with a head (score.weight); shape: `SHAPE`.
Token 0 is padding, 2 ends a response. The rows of a batch are in the order in which the trainer drew them.
What the settings of a case do not name: kl_coef 0.05, cliprange and cliprange_value 0.2, vf_coef 0.1, gamma 1, lam 0.95, one
learning rate of 0.003 for both; batches of four rows in micro-batches of two (whitened: eight in fours), two epochs.

ppo.safetensors, CASE/NAME, f64 unless said; B rows, six tokens of response, four of prompt (left-padded):
    queries [B, 4], responses, postprocessed_responses [B, 6], sequence_lengths [B] (index of the last token)         i64
    padding_mask, padding_mask_p1 [B, 6]: beyond the last token, beyond the one after it                              i64, 0 or 1
    logprobs, ref_logprobs [B, 6] with 1.0 in padding_mask; values [B, 6] with 0 in padding_mask_p1
    scores [B] after the penalty for a missing end; kl [B, 6], non_score_reward [B, 6]
    rewards_raw, rewards [B, 6] before and after whitening (the same without it)
    advantages_raw, advantages, returns [B, 6]: GAE before and after whitening; returns are raw advantages + values
    epoch1/..., epoch2/... of the first micro-batch of M rows: indices [M] i64 into the batch; new_logprobs, vpred [M, 6] (masked
        as the old ones), pg_loss, vf_loss, loss, pg_clipfrac, vf_clipfrac [], gradient_new_logprobs, gradient_vpred [M, 6] of
        the loss, before it is divided by the two accumulated micro-batches (TRL rounds the fractions to f32)
    base/final/policy.NAME, base/final/value.NAME: all weights after the batch (two epochs, one step of AdamW each, unclipped)
ppo.jsonl: {"case", "settings", "metrics", "statistics", "f32_distance"}; metrics as TRL logs them; statistics [epoch][mini-batch]
[micro-batch] as TRL collects them; f32_distance of what precedes the first step.
"""

import contextlib
import io
import sys

import numpy as np
import torch
import trl.experimental.ppo.ppo_trainer as module
from common import Golden, numbers, relative, settings
from datasets import Dataset
from ml_common import config, llama, weight
from tokenizers import Tokenizer, models
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl.experimental.ppo import PPOConfig, PPOTrainer

VOCABULARY, WIDTH, PROMPT = 13, 6, 4
SHAPE = dict(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
             num_key_value_heads=1, pad_token_id=0)  # fmt: skip
ANSWERS = {
    (5, 9, 4, 7): [5, 7, 3, 9, 11, 4],  # no end
    (8, 3): [6, 8, 2],  # an early end
    (12, 4, 6): [10, 3, 12, 9, 7, 2],  # an end at the last place
    (7, 7, 10): [4, 9, 9, 11, 2],  # one place before it
    (3, 12): [2],  # an end at once
    (11, 5, 8, 6): [3, 3, 8, 2],
    (4, 10): [12, 6, 5, 8, 10, 9],
    (9, 6, 11): [7, 2],
}
CASES = {
    "base": {},
    "k3": {"kl_estimator": "k3"},
    "missing_end": {"missing_eos_penalty": 1.0},
    "discounted": {"gamma": 0.9, "lam": 0.8},
    "whitened": {"whiten_rewards": True, "kl_coef": 0.2},
}
BATCH = ["queries", "responses", "postprocessed_responses", "sequence_lengths", "padding_mask", "padding_mask_p1", "logprobs",
         "ref_logprobs", "values", "scores", "kl", "non_score_reward", "rewards", "advantages", "returns"]  # fmt: skip
MICRO = ["new_logprobs", "vpred", "pg_loss", "vf_loss", "loss", "vf_clipfrac"]
STATISTICS = ["approxkl", "pg_clipfrac", "pg_loss", "vf_loss", "vf_clipfrac", "entropy", "ratio"]


def scored(dtype, role):
    """The tiny Llama with one number at every token."""
    model = LlamaForSequenceClassification(config(**SHAPE, num_labels=1)).eval()
    model.config._attn_implementation = "sdpa" if dtype == torch.float64 else "eager"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.data = weight(f"{role} {name}", tuple(parameter.shape)).to(dtype)
    return model.to(dtype)


def language_models(dtype):
    """Policy and reference."""
    policy, reference = llama(dtype, **SHAPE), llama(dtype, **SHAPE)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter += numbers(f"reference {name}", tuple(parameter.shape), 0.2).to(dtype)
    return policy, reference


def given(queries, width):
    """The responses to left-padded queries, padded after their end."""
    rows = [ANSWERS[tuple(token for token in query.tolist() if token)] for query in queries]
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def generate(policy, queries, pad_token_id, generation_config):
    """In the place of TRL's: given responses, and their scores without transformers' rounding to f32."""
    whole = torch.cat([queries, given(queries, WIDTH)], 1)
    logits = module.forward(policy, whole, pad_token_id).logits[:, queries.shape[1] - 1 : -1]
    return whole, logits / generation_config.temperature


class Draws:
    """In the place of torch.multinomial under the real `generate`: the given tokens, step by step."""

    def __init__(self, queries):
        # What is drawn after an end is of no account.
        self.columns = given(queries, WIDTH).masked_fill(given(queries, WIDTH) == 0, 5).unbind(1)
        self.step = 0

    def __call__(self, probabilities, num_samples):
        self.step += 1
        return self.columns[self.step - 1].unsqueeze(1)


def train(dtype, **changes):
    """One batch: what the trainer's local variables say of it, its metrics and statistics, and the weights after it."""
    rows = 8 if changes.get("whiten_rewards") else 4
    words = Tokenizer(models.WordLevel({f"t{index}": index for index in range(VOCABULARY)}, unk_token="t1"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", eos_token="t2", padding_side="left")
    args = settings(
        PPOConfig, per_device_train_batch_size=rows // 2, gradient_accumulation_steps=2, num_ppo_epochs=2, total_episodes=rows,
        response_length=WIDTH, stop_token="eos", learning_rate=0.003, num_sample_generations=0, save_strategy="no",
        disable_tqdm=True, seed=3, **changes,
    )  # fmt: skip
    policy, reference = language_models(dtype)
    value = scored(dtype, "value")
    trainer = PPOTrainer(
        args, tokenizer, policy, reference, scored(dtype, "reward"), value_model=value,
        # Twice what is used: accelerate takes a step at every micro-batch of a loader's last batch, accumulating nothing.
        train_dataset=Dataset.from_list([{"input_ids": list(query)} for query in (list(ANSWERS) * 2)[: 2 * rows]]),
    )  # fmt: skip
    found, whitened = {}, []

    def backward(loss):
        """Sees a micro-batch before its gradients are taken."""
        local = sys._getframe(1).f_locals
        if local["gradient_accumulation_idx"] == 0:
            prefix = f"epoch{local['ppo_epoch_idx'] + 1}/"
            found.update({prefix + name: local[name].detach().clone().to(dtype) for name in MICRO})
            found[prefix + "indices"] = torch.from_numpy(local["micro_batch_inds"])
            leaves = [local["new_logprobs"], local["vpred"]]
            gradients = torch.autograd.grad(loss, leaves, retain_graph=True)
            found[prefix + "gradient_new_logprobs"], found[prefix + "gradient_vpred"] = gradients
        real_backward(loss)

    def log(metrics):
        """Sees the whole batch after its last epoch."""
        local = sys._getframe(1).f_locals
        found.update({name: local[name].detach().clone() for name in BATCH})
        for name in STATISTICS:
            statistics[name] = local[f"{name}_stats"].clone()
        logged.update({name: number for name, number in metrics.items() if name != "eps"})

    def whiten(values, mask, shift_mean=True):
        """Keeps what is whitened."""
        result = real_whiten(values, mask, shift_mean)
        whitened.append((shift_mean, values.clone()))
        return result

    logged, statistics = {}, {}
    real_backward, real_whiten = trainer.accelerator.backward, module.masked_whiten
    real_generate, real_draw = module.generate, torch.multinomial
    trainer.accelerator.backward, trainer.log, module.masked_whiten = backward, log, whiten
    if dtype == torch.float64:
        module.generate = generate
    else:

        def drawn(policy, queries, *rest):
            torch.multinomial = Draws(queries)
            return real_generate(policy, queries, *rest)

        module.generate = drawn
    np.random.seed(11)
    torch.set_default_dtype(dtype)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
    finally:
        torch.set_default_dtype(torch.float32)
        module.masked_whiten, module.generate, torch.multinomial = real_whiten, real_generate, real_draw
    raw = {shift_mean: values for shift_mean, values in whitened}
    found["advantages_raw"], found["rewards_raw"] = raw[True], raw.get(False, found["rewards"])
    for epoch in [1, 2]:
        found[f"epoch{epoch}/pg_clipfrac"] = statistics["pg_clipfrac"][epoch - 1, 0, 0].clone()
    final = {f"policy.{name}": parameter for name, parameter in policy.named_parameters()}
    final |= {f"value.{name}": parameter for name, parameter in value.named_parameters()}
    found = {name: tensor.long() if tensor.dtype == torch.bool else tensor for name, tensor in found.items()}
    return found, logged, statistics, final


if __name__ == "__main__":
    golden = Golden(trl="1.12.0")
    arrays, lines = {}, []
    for case, changes in CASES.items():
        found, logged, statistics, final = train(torch.float64, **changes)
        single, single_logged, _, single_final = train(torch.float32, **changes)
        assert found.keys() == single.keys()
        distance = 0.0
        for name, value in found.items():
            if not value.is_floating_point():
                assert torch.equal(value, single[name]), f"{case}: {name} in f32"
            elif not name.startswith("epoch2") and value.abs().max() > 1e-6:
                distance = max(distance, relative(single[name], value))
        assert distance < 1e-4, f"{case}: f32 is {distance:.1e} away"
        # An optimizer's step makes much of the smallest gradients' rounding.
        for name, value in logged.items():
            assert abs(single_logged[name] - value) < 1e-3 * max(1.0, abs(value)), f"{case}: {name} in f32"
        ended = (found["responses"] == 2).any(1).tolist()
        kinds = set(zip(found["sequence_lengths"].tolist(), ended, strict=True))
        assert {(WIDTH - 1, False), (WIDTH - 1, True)} < kinds, f"{case}: not all kinds of ends but {kinds}"
        assert statistics["approxkl"][0].abs().max() < 1e-12, f"{case}: a step before the epoch's end"
        assert min(found["epoch2/pg_clipfrac"], found["epoch2/vf_clipfrac"]) > 0, f"{case}: nothing is clipped"
        arrays |= {f"{case}/{name}": value for name, value in found.items()}
        if case == "base":
            arrays |= {f"{case}/final/{name}": value for name, value in final.items()}
        lines.append({"case": case, "settings": changes, "metrics": logged, "f32_distance": distance,
                      "statistics": {name: value.tolist() for name, value in statistics.items()}})  # fmt: skip
    golden.arrays("ppo", arrays)
    golden.cases("ppo", lines)
    golden.close()
