"""The peer of `dpo`: TRL's DPOTrainer on given token ids. Takes a job as JSON, answers as JSON."""

import json
import sys
import time

import torch
import transformers
import trl
from datasets import Dataset
from peft import PeftConfig, load_peft_weights, set_peft_model_state_dict


class Clock(transformers.TrainerCallback):
    """What each step took."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *_, **__):
        self.begin = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.seconds.append(time.perf_counter() - self.begin)


class Trainer(trl.DPOTrainer):
    """Takes ids as they are, and counts what goes into the model."""

    seen = []

    def _prepare_dataset(self, dataset, *_):
        return dataset

    def compute_loss(self, model, inputs, *arguments, **named):
        self.seen.append((inputs["input_ids"].numel(), int(inputs["completion_mask"].sum())))
        return super().compute_loss(model, inputs, *arguments, **named)


def train(job, pairs):
    """The trainer after its training, and its clock. The adapter is ours; without it the model is the reference."""
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    adapter = PeftConfig.from_pretrained(job["adapter"])
    adapter.inference_mode = False
    settings = trl.DPOConfig(
        output_dir=job["folder"], per_device_train_batch_size=len(pairs), max_steps=job["steps"], learning_rate=job["learning_rate"],
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, gradient_checkpointing=False, bf16=False,
        use_cpu=True, logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True, max_length=None, beta=job["beta"],
        precompute_ref_log_probs=job["beforehand"],
    )  # fmt: skip
    clock = Clock()
    trainer = Trainer(
        model=model, args=settings, train_dataset=Dataset.from_list(pairs), peft_config=adapter, callbacks=[clock],
        processing_class=transformers.AutoTokenizer.from_pretrained(job["model"]),
    )  # fmt: skip
    found = set_peft_model_state_dict(trainer.model, load_peft_weights(job["adapter"]))
    trained = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
    assert not found.unexpected_keys and trained == {torch.float32}, "the adapter is ours, in f32"
    trainer.train()
    return trainer, clock


def references(trainer):
    """Seconds of the reference's pass over the pairs, a second time: the first one was before the training, and warmed it up."""
    batch = next(iter(trainer.get_train_dataloader()))
    begin = time.perf_counter()
    trainer.compute_ref_log_probs(trainer.model, batch)
    return [time.perf_counter() - begin]


def main():
    """One training."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    with open(job["pairs"], encoding="utf-8") as file:
        pairs = json.load(file)
    trainer, clock = train(job, pairs)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    numbers = {name: [entry[name] for entry in logged] for name in ("loss", "logps/chosen", "logps/rejected")}
    taken = references(trainer) if job["beforehand"] else []
    print(json.dumps({"numbers": numbers, "seconds": clock.seconds, "references": taken, "tokens": Trainer.seen}))


main()
