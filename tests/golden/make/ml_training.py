"""Golden values of training: ten steps of a plain transformers + PEFT loop in f64, and the same data through TRL's trainer.

Usage: OMP_NUM_THREADS=1 python tests/golden/make/ml_training.py
Rows are padded and masked as transformers does it (ours lie packed); a step is four rows in two micro-batches of different
token counts; the loss is the mean over the trained tokens of all four. TRL's `SFTTrainer` on the same rows is the witness that
this is what it trains, too: its own losses and norms, in f32, are stored beside it.
"""

import tempfile

import torch
import transformers
from ml_common import agree, config, llama, numbers, relative, tokens, write
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

STEPS, BATCH, MICRO, PEAK, WARMUP = 10, 4, 2, 1e-2, 2
ROWS = 40


def row(index):
    """Token ids and mask of a row: a prompt, then a completion that is trained."""
    length = 4 + index * 7 % 19
    prompt = 1 + index * 5 % (length - 2)
    return tokens(f"row {index}", length), torch.arange(length) >= prompt


def padded(indices):
    """What transformers' collators make of rows."""
    rows = [row(index) for index in indices]
    longest = max(len(ids) for ids, _ in rows)
    ids, labels, mask = (torch.full((len(rows), longest), fill) for fill in (0, -100, 0))
    for at, (values, trained) in enumerate(rows):
        ids[at, : len(values)] = values
        labels[at, : len(values)] = torch.where(trained, values, -100)
        mask[at, : len(values)] = 1
    return ids, labels, mask


def lora(dtype):
    """The tiny model with a fresh adapter: A by formula, B zero."""
    model = get_peft_model(llama(dtype), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                plain = name.removeprefix("base_model.model.").replace(".default", "")
                parameter.data = numbers(plain, tuple(parameter.shape), 0.2).to(dtype)
    return model


def full(dtype):
    """The tiny model, every weight trained."""
    return llama(dtype, tie_word_embeddings=False)


def train(model, clip, weight_decay):
    """The plain loop."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for n, p in named if "norm" not in n], "weight_decay": weight_decay},
        {"params": [p for n, p in named if "norm" in n], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    losses, norms, counts = [], [], []
    for step in range(STEPS):
        indices = list(range(step * BATCH, (step + 1) * BATCH))
        count = sum(int(row(index)[1].sum()) for index in indices)
        total = 0.0
        for start in range(0, BATCH, MICRO):
            ids, labels, mask = padded(indices[start : start + MICRO])
            output = model(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=count)
            # transformers' loss is in f32 whatever the logits are; the same in f64.
            logits = output.logits[:, :-1].flatten(0, 1)
            loss = F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum") / count
            agree(output.loss, loss, 1e-6, "the loss of transformers")
            loss.backward()
            total += loss.item()
        norms.append(torch.nn.utils.clip_grad_norm_([p for _, p in named], clip).item())
        losses.append(total)
        counts.append(count)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    as_tensor = lambda values: torch.tensor(values, dtype=torch.float64)  # noqa: E731
    return {"losses": as_tensor(losses), "norms": as_tensor(norms), "counts": torch.tensor(counts)}


def tokenizer():
    """TRL wants one; it never tokenizes here."""
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({f"t{index}": index for index in range(64)}, unk_token="t0"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", eos_token="t2", unk_token="t0")


def train_with_trl(model):
    """The same rows, already tokenized, through `SFTTrainer`."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [row(index) for index in range(ROWS)]
    data = Dataset.from_list([{"input_ids": i.tolist(), "completion_mask": m.int().tolist()} for i, m in rows])
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder, per_device_train_batch_size=MICRO, gradient_accumulation_steps=BATCH // MICRO, max_steps=STEPS,
            learning_rate=PEAK, warmup_steps=WARMUP, lr_scheduler_type="linear", max_grad_norm=1.0, weight_decay=0.0,
            train_sampling_strategy="sequential", logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, bf16=False,
            gradient_checkpointing=False, max_length=None, completion_only_loss=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer())
        trainer.train()
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
    column = lambda key: torch.tensor([entry[key] for entry in history], dtype=torch.float64)  # noqa: E731
    return {"losses": column("loss"), "norms": column("grad_norm"), "rates": column("learning_rate")}


assert config().vocab_size == 64
golden = {}
model = lora(torch.float64)
golden.update({f"lora.{key}": value for key, value in train(model, 1.0, 0.0).items()})
for name, parameter in model.named_parameters():
    if "lora_" in name:
        golden["lora.final." + name.removeprefix("base_model.model.").replace(".default", "")] = parameter
# How far the same loop in f32 is from it.
single = lora(torch.float32)
train(single, 1.0, 0.0)
pairs = [(a, b) for (name, a), b in zip(single.named_parameters(), model.parameters()) if "lora_" in name]
golden["lora.single"] = torch.tensor(max(relative(a, b) for a, b in pairs), dtype=torch.float64)

model = full(torch.float64)
golden.update({f"full.{key}": value for key, value in train(model, 1.0, 0.05).items()})
with torch.no_grad():
    golden["full.logits"] = model(row(0)[0].unsqueeze(0)).logits[0]

witness = train_with_trl(lora(torch.float32))
golden.update({f"trl.{key}": value for key, value in witness.items()})
print("TRL against the plain loop: losses", (witness["losses"] - golden["lora.losses"]).abs().max().item(),
      "norms", (witness["norms"] - golden["lora.norms"]).abs().max().item())  # fmt: skip
agree(witness["losses"], golden["lora.losses"], 1e-4, "TRL's losses")
agree(witness["norms"], golden["lora.norms"], 1e-3, "TRL's norms")
write("training", golden)
