"""The peer of a training: TRL's SFTTrainer, or a plain loop of transformers and PEFT. Takes a job as JSON, answers as JSON."""

import json
import sys
import time

import torch
import transformers
from peft import PeftModel

IGNORED = -100


def load(job):
    """The model with the adapter that our side started from."""
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    model.config.use_cache = False
    return PeftModel.from_pretrained(model, job["adapter"], is_trainable=True)


def batch(rows):
    """Token ids and labels. All rows are of one length: nothing is padded."""
    ids = torch.tensor([row["input_ids"] for row in rows])
    trained = torch.tensor([row["trained"] for row in rows])
    # Nothing predicts the first token.
    trained[:, 0] = False
    return ids, torch.where(trained, ids, IGNORED)


def plain(job, rows):
    """Forward, backward, clip, AdamW; compiled where the job says so."""
    model = load(job).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=job["learning_rate"], weight_decay=0.0, fused=True)
    scheduler = transformers.get_constant_schedule(optimizer)
    forward = torch.compile(model) if job["compile"] else model
    ids, labels = batch(rows)
    losses, seconds = [], []
    for _ in range(job["steps"]):
        begin = time.perf_counter()
        loss = forward(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - begin)
    return losses, seconds, [ids.numel()] * job["steps"], int((labels != IGNORED).sum())


def trl(job, rows):
    """SFTTrainer on the same token ids."""
    import datasets
    import trl as package

    class Clock(transformers.TrainerCallback):
        """What each step took."""

        seconds = []

        def on_step_begin(self, *_, **__):
            self.begin = time.perf_counter()

        def on_step_end(self, *_, **__):
            self.seconds.append(time.perf_counter() - self.begin)

    ids, labels = batch(rows)
    settings = package.SFTConfig(
        output_dir=job["folder"], per_device_train_batch_size=len(rows), max_steps=job["steps"], learning_rate=job["learning_rate"],
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, gradient_checkpointing=False,
        bf16=job["autocast"], use_cpu=True, logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True,
        max_length=None, packing=False, dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    clock = Clock()
    seen = []

    class Trainer(package.SFTTrainer):
        """Counts what goes into the model."""

        def compute_loss(self, model, inputs, *arguments, **named):
            seen.append((inputs["input_ids"].numel(), int((inputs["labels"][:, 1:] != IGNORED).sum())))
            return super().compute_loss(model, inputs, *arguments, **named)

    trainer = Trainer(
        model=load(job), args=settings, train_dataset=datasets.Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()}),
        processing_class=transformers.AutoTokenizer.from_pretrained(job["model"]), callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, clock.seconds, [tokens for tokens, _ in seen], seen[0][1]


def main():
    """One training."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    with open(job["rows"], encoding="utf-8") as file:
        rows = json.load(file)
    losses, seconds, tokens, trained = {"trl": trl, "plain": plain}[job["trainer"]](job, rows)
    print(json.dumps({"losses": losses, "seconds": seconds, "tokens": tokens, "trained": trained}))


main()
