"""The peer of `ppo`: the PPOTrainer of TRL 1.12, looked at from inside. Takes a job as JSON, answers as JSON."""

import contextlib
import json
import os
import sys
import time

import torch
import transformers
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Clock(transformers.TrainerCallback):
    """What each batch took, from the end of the one before it."""

    def __init__(self):
        self.seconds = []

    def on_train_begin(self, *_, **__):
        self.last = time.perf_counter()

    def on_step_end(self, *_, **__):
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


class Trainer(PPOTrainer):
    """Keeps what the loop knows when it logs a batch."""

    shapes, first = [], {}

    def log(self, logs, *_, **__):
        local = sys._getframe(1).f_locals
        counted = int((~local["padding_mask"]).sum())
        updates = local["pg_loss_stats"].shape[0] * local["pg_loss_stats"].shape[1]
        self.shapes.append([list(local["queries"].shape), list(local["query_responses"].shape), counted, updates])
        if not self.first:
            self.first.update(
                policy_loss=local["pg_loss_stats"][0].mean().item(), kl=logs["objective/kl"],
                entropy=logs["objective/entropy"] / local["responses"].shape[1],
            )  # fmt: skip


def main():
    """One training."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    dtype = getattr(torch, job["dtype"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    # What the model never says: the loop takes whatever is padding for the end of a completion.
    tokenizer.pad_token = tokenizer.eos_token
    base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    policy = PeftModel.from_pretrained(base, job["adapter"], is_trainable=True)
    reward, critic = (AutoModelForSequenceClassification.from_pretrained(job["reward"], num_labels=1, dtype=dtype) for _ in range(2))
    rows = [{"input_ids": tokenizer(text).input_ids} for text in job["texts"]]
    settings = PPOConfig(
        output_dir=job["folder"], use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, save_strategy="no", num_sample_generations=0,
        per_device_train_batch_size=len(rows), gradient_accumulation_steps=1, num_mini_batches=1, num_ppo_epochs=job["epochs"],
        total_episodes=len(rows) * job["updates"], response_length=job["response"], stop_token=None, temperature=job["temperature"],
        learning_rate=job["learning_rate"], lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, gradient_checkpointing=False,
        kl_coef=0.05, cliprange=0.2, cliprange_value=0.2, vf_coef=0.1, gamma=1.0, lam=0.95, whiten_rewards=False, seed=job["seed"],
    )  # fmt: skip
    clock = Clock()
    trainer = Trainer(
        settings, tokenizer, policy, None, reward, value_model=critic, train_dataset=Dataset.from_list(rows), callbacks=[clock],
    )  # fmt: skip
    # The loop prints; the answer has to be the last line.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        trainer.train()
    print(json.dumps({"seconds": clock.seconds, "shapes": Trainer.shapes, "first": Trainer.first}))


main()
