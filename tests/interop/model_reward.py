"""Reward models both ways: ours (whole and with an adapter, embeddings tied and untied) are opened by transformers and PEFT, those
that transformers and TRL's RewardTrainer saved are opened by ours; all give equal scores on rows of different lengths.
"""

import tempfile
from pathlib import Path

import torch
import trl
from datasets import Dataset
from peft import PeftModel
from support.levain import CHECKOUT, Recipe, Report
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

TOKENIZER = CHECKOUT / "tests" / "golden" / "data" / "formats" / "tiny"
CLOSE = 1e-4
"""How far scores may be apart in f32, relative to the spread of all scores: one of them may be near 0."""

SAMPLES = [
    {"prompt": "How is the loaf?", "completion": " Crisp."},
    {"prompt": "How is the loaf?", "completion": " Burnt at the edges, raw within, and as flat as the day before."},
    {"prompt": "Name a grain.", "completion": " Rye."},
    {"prompt": "It rained for three days, and on the fourth", "completion": " the river stood in the kitchen."},
    {"prompt": "1, 2,", "completion": " 3"},
]
PAIRS = [
    {"prompt": "How is the loaf?", "chosen": " Crisp.", "rejected": " Burnt."},
    {"prompt": "Name a grain.", "chosen": " Rye is a grain, and so is wheat.", "rejected": " Bread"},
    {"prompt": "Say nothing.", "chosen": " As you wish.", "rejected": " No, no, no and no again"},
    {"prompt": "1, 2,", "chosen": " 3", "rejected": " 7"},
]
SHAPES = {"tied": {"tie_word_embeddings": True}, "untied": {"tie_word_embeddings": False}}


def settings(tokenizer, **changes):
    """The shape of a tiny model, with opinions from the start."""
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=112, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.15, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, **changes,
    )  # fmt: skip


def ids(tokenizer, row):
    """A completion after its prompt with the end of text, as both sides train on it."""
    return tokenizer(row["prompt"] + row["completion"]).input_ids + [tokenizer.eos_token_id]


@torch.no_grad()
def their_scores(model, tokenizer):
    """transformers' scores, row by row: without padding there is nothing that could be taken for it."""
    model.eval()
    model.config.pad_token_id = None
    return [model(input_ids=torch.tensor([ids(tokenizer, row)])).logits.item() for row in SAMPLES]


@torch.no_grad()
def padded_scores(model, tokenizer, pad):
    """All rows at once, padded on the right with a token that no row ends in."""
    model.eval()
    model.config.pad_token_id = pad
    rows = [torch.tensor(ids(tokenizer, row)) for row in SAMPLES]
    whole = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    return model(input_ids=whole, attention_mask=(whole != pad).long()).logits[:, 0].tolist()


def our_scores(recipe, stage):
    """Rewards out of the scores that a judge gave, in the order of the samples: of a prompt the best completion comes first."""
    scores = {row["completion"]: row["score"] for row in recipe.show(stage)["rows"]}
    return [scores[row["completion"]] for row in SAMPLES]


def compare(report, ours, theirs, text):
    """Score by score."""
    spread = max(theirs) - min(theirs)
    report.check(len(ours) == len(theirs) and spread > 0, f"{text}: {len(theirs)} scores over {spread:.3f}")
    far = max(abs(a - b) for a, b in zip(ours, theirs)) / spread
    report.check(far <= CLOSE, f"{text}: {far:.1e} apart (at most {CLOSE:.0e})")


def judged(judge):
    """A stage that has a judge score the samples."""
    return {"kind": "annotate", "samples": "samples", "judge": judge, "make": "scored", "micro_batch": 3}


def ours_in_transformers(report, tokenizer, shape):
    """Reward models that we trained."""
    training = {"kind": "reward_model", "data": "pairs", "batch": 2, "max_steps": 6, "learning_rate": 1e-2}
    stages = {
        "base": {"kind": "load_model", "source": "base", "dtype": "f32"},
        "thin": {"kind": "lora", "model": "base", "r": 4, "targets": "all-linear"},
        "pairs": {"kind": "load_dataset", "source": "pairs.jsonl", "format": "preference"},
        "samples": {"kind": "load_dataset", "source": "samples.jsonl", "format": "prompt-completion"},
        "whole": {**training, "model": "base", "learning_rate": 1e-3},
        "slim": {**training, "model": "thin"},
        "by_whole": judged("whole"),
        "by_slim": judged("slim"),
    }
    with Recipe(f"reward-{shape}", stages, {"pairs.jsonl": PAIRS, "samples.jsonl": SAMPLES}) as recipe:
        torch.manual_seed(len(shape))
        base = LlamaForCausalLM(settings(tokenizer, **SHAPES[shape]))
        base.save_pretrained(recipe.folder / "base")
        tokenizer.save_pretrained(recipe.folder / "base")
        recipe.run()
        rows = recipe.tokens("whole")
        theirs = [ids(tokenizer, {"prompt": pair["prompt"], "completion": pair[side]}) for pair in PAIRS for side in ("chosen", "rejected")]
        report.equal([row["input_ids"] for row in rows], theirs, f"{shape}: ids of {len(PAIRS)} pairs")

        def raw(stage):
            """Before they were standardized."""
            summary = recipe.show(stage)["summary"]
            return [score * summary["deviation"] + summary["mean"] for score in our_scores(recipe, f"by_{stage}")]

        folder = recipe.export("whole", "whole")
        model, found = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        strangers = any(found[key] for key in ["missing_keys", "unexpected_keys", "mismatched_keys"])
        report.check(not strangers and model.num_labels == 1, f"{shape}: every tensor of the export has its place")
        summary = recipe.show("whole")["summary"]
        report.equal((model.config.reward_mean, model.config.reward_deviation), (summary["mean"], summary["deviation"]), f"{shape}: its mean and deviation")
        again = AutoTokenizer.from_pretrained(folder)
        compare(report, raw("whole"), their_scores(model, again), f"{shape}: whole, row by row")
        pad = next(i for i in range(len(tokenizer)) if not any(i in ids(tokenizer, row) for row in SAMPLES))
        compare(report, raw("whole"), padded_scores(model, again, pad), f"{shape}: whole, padded")

        under = AutoModelForSequenceClassification.from_pretrained(recipe.folder / "base", num_labels=1)
        folder = recipe.export("slim", "slim", "peft")
        model = PeftModel.from_pretrained(under, folder)
        report.check("score" in str(model.peft_config["default"].modules_to_save), f"{shape}: PEFT takes the head beside the adapter")
        compare(report, raw("slim"), their_scores(model, AutoTokenizer.from_pretrained(folder)), f"{shape}: adapter and head in PEFT")

        # And back again, into a cache that never saw it.
        stages = {
            "judge": {"kind": "load_reward_model", "source": str(recipe.folder / "export" / "whole"), "dtype": "f32"},
            "samples": stages["samples"],
            "scores": judged("judge"),
        }
        with Recipe(f"reward-again-{shape}", stages, {"samples.jsonl": SAMPLES}) as other:
            other.run()
            compare(report, other_scores := our_scores(other, "scores"), our_scores(recipe, "by_whole"), f"{shape}: exported and loaded again")
            report.check(len(set(other_scores)) > 1, f"{shape}: it tells completions apart")


def theirs_in_ours(report, tokenizer, shape, folder):
    """A reward model as it was created, and one that TRL trained."""
    torch.manual_seed(40 + len(shape))
    fresh = LlamaForSequenceClassification(settings(tokenizer, num_labels=1, **SHAPES[shape]))
    fresh.save_pretrained(folder / "fresh")
    tokenizer.save_pretrained(folder / "fresh")
    before = their_scores(fresh, tokenizer)

    how = trl.RewardConfig(
        output_dir=str(folder / "run"), per_device_train_batch_size=2, max_steps=4, learning_rate=1e-3, use_cpu=True, bf16=False,
        report_to="none", save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, max_length=None,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(folder / "fresh")
    trainer = trl.RewardTrainer(model=model, args=how, train_dataset=Dataset.from_list(PAIRS), processing_class=AutoTokenizer.from_pretrained(folder / "fresh"))
    trainer.train()
    trainer.save_model(folder / "trained")
    after = their_scores(trainer.model, tokenizer)
    report.check(max(abs(a - b) for a, b in zip(before, after)) > 1e-3, f"{shape}: TRL's training changed the scores")

    mean, deviation = 0.5, 2.0
    stages = {
        "samples": {"kind": "load_dataset", "source": "samples.jsonl", "format": "prompt-completion"},
        "fresh": {"kind": "load_reward_model", "source": str(folder / "fresh"), "dtype": "f32"},
        "trained": {"kind": "load_reward_model", "source": str(folder / "trained"), "dtype": "f32", "mean": mean, "deviation": deviation},
        "by_fresh": judged("fresh"),
        "by_trained": judged("trained"),
    }
    with Recipe(f"reward-theirs-{shape}", stages, {"samples.jsonl": SAMPLES}) as recipe:
        recipe.run()
        compare(report, our_scores(recipe, "by_fresh"), before, f"{shape}: saved by transformers")
        compare(report, [s * deviation + mean for s in our_scores(recipe, "by_trained")], after, f"{shape}: trained by TRL")


def main():
    """Both shapes, both ways."""
    torch.set_num_threads(2)
    report = Report("model_reward")
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    for shape in SHAPES:
        ours_in_transformers(report, tokenizer, shape)
        with tempfile.TemporaryDirectory(prefix="levain-reward-") as folder:
            theirs_in_ours(report, tokenizer, shape, Path(folder))
    report.done()


if __name__ == "__main__":
    main()
