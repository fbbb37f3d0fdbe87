"""Classifiers that we trained on a tiny Llama and a tiny BERT, opened by transformers' AutoModelForSequenceClassification and by PEFT: every tensor has
its place, labels have their names, and each text gets the probability, or the number, that `classify` gives it. And classifiers of transformers, read by
`load_classifier`: the same texts get what transformers gives them, and what is written of them is opened again.
"""

import json
from pathlib import Path

import torch
from peft import PeftModel
from support.levain import CHECKOUT, Recipe, Report
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast,
)  # fmt: skip

LLAMA_TOKENIZER = CHECKOUT / "tests" / "golden" / "data" / "formats" / "tiny"
WORDS = "loaf crust crumb how many is or the a warm flat dear ? . 1 2 3 4 5 6 7 8 9".split(" ")
LENGTH = 12
TEXTS = [
    {"text": text, "label": label, "mark": mark}
    for i in range(10)
    for text, label, mark in [
        ("loaf " * (i % 4 + 1) + "crust", "bread", i / 4),
        (f"{i % 9 + 1} or {i % 7 + 2} . " * (i % 3 + 1), "number", -1.5),
        (f"how many is the warm {i % 9 + 1} ?", "question", 2 - i / 8),
    ]
]
TRAINING = {"batch": 8, "micro_batch": 3, "max_steps": 6, "max_length": LENGTH}
SPECIAL = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}


def save_llama(folder):
    """A tiny Llama with the tokenizer of the golden files."""
    tokenizer = AutoTokenizer.from_pretrained(LLAMA_TOKENIZER)
    shape = LlamaConfig(
        vocab_size=280, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=None, tie_word_embeddings=True,
        initializer_range=0.15,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def bert_tokenizer():
    """BERT's tokenizer with a few words."""
    vocabulary = {word: place for place, word in enumerate([*SPECIAL.values(), *WORDS])}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    around = [(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIAL)


def save_bert(folder):
    """A tiny BERT with that tokenizer."""
    tokenizer = bert_tokenizer()
    tokenizer.save_pretrained(folder)
    shape = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, initializer_range=0.15,
    )  # fmt: skip
    BertModel(shape).save_pretrained(folder)


ARCHITECTURES = {"llama": (save_llama, "last", "score"), "bert": (save_bert, "pooler", "classifier")}


def strangers(found):
    """Names that had no place, and places that had no name."""
    return {key: names for key, names in found.items() if names and key != "error_msgs"}


@torch.no_grad()
def answers(model, folder):
    """The logits of each text alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.eval()
    rows = [tokenizer(row["text"], truncation=True, max_length=LENGTH, return_tensors="pt") for row in TEXTS]
    return [model(input_ids=row.input_ids, attention_mask=row.attention_mask).logits[0].double() for row in rows]


def compare(report, model, folder, said, name, what):
    """Our predictions of every text against theirs."""
    logits = answers(model, folder)
    if model.config.problem_type == "regression":
        ours = torch.tensor([row["predicted"][name] for row in said], dtype=torch.float64)
        theirs = torch.cat(logits)
    else:
        ours = torch.tensor([row["probability"][name] for row in said], dtype=torch.float64)
        theirs = torch.stack([row.softmax(-1).max() for row in logits])
        labels = [model.config.id2label[row.argmax().item()] for row in logits]
        report.equal([row["predicted"][name] for row in said], labels, f"{what}: the labels of {len(labels)} texts")
    distance = (ours - theirs).abs().max().item()
    report.check(distance < 1e-5, f"{what}: {len(said)} texts, at most {distance:.1e} apart")


def check(report, name):
    """One architecture: whole, with an adapter, and for a number."""
    make, pooling, module = ARCHITECTURES[name]
    own = {"kind": "classifier", "pooling": pooling, **TRAINING}
    stages = {
        "base": {"kind": "load_model", "source": "models/base", "dtype": "f32"},
        "thin": {"kind": "lora", "model": "base", "r": 4},
        "texts": {"kind": "load_dataset", "source": "texts.jsonl", "format": "labelled"},
        "marks": {"kind": "load_dataset", "source": "marks.jsonl", "format": "labelled"},
        "whole": {**own, "model": "base", "data": "texts", "learning_rate": 1e-3},
        "adapted": {**own, "model": "thin", "data": "texts", "learning_rate": 1e-2},
        "gauge": {**own, "model": "base", "data": "marks", "task": "regression", "learning_rate": 1e-3},
        "said": {"kind": "classify", "models": {"whole": "whole", "adapted": "adapted"}, "data": "texts", "max_length": LENGTH},
        "told": {"kind": "classify", "models": {"gauge": "gauge"}, "data": "marks", "task": "regression", "max_length": LENGTH},
    }  # fmt: skip
    files = {
        "texts.jsonl": [{"text": row["text"], "label": row["label"]} for row in TEXTS],
        "marks.jsonl": [{"text": row["text"], "label": row["mark"]} for row in TEXTS],
    }
    with Recipe(f"classifier-{name}", stages, files) as recipe:
        base = recipe.folder / "models" / "base"
        torch.manual_seed(3)
        make(base)
        recipe.run()

        def lines(stage):
            paths = {file["name"]: Path(file["path"]) for file in recipe.show(stage)["files"]}
            return [json.loads(line) for line in paths["predictions.jsonl"].read_text().splitlines()]

        for stage, said in [("whole", lines("said")), ("gauge", lines("told"))]:
            folder = recipe.export(stage, stage)
            model, found = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
            report.equal(strangers(found), {}, f"{name}, {stage}: every tensor of the export has its place")
            report.equal(model.config.problem_type, "regression" if stage == "gauge" else "single_label_classification", f"{name}, {stage}: problem type")
            compare(report, model, folder, said, stage, f"{name}, {stage}")
        labels = {0: "bread", 1: "number", 2: "question"}
        model = AutoModelForSequenceClassification.from_pretrained(recipe.folder / "export" / "whole")
        report.equal(model.config.id2label, labels, f"{name}: names of labels")

        folder = recipe.export("adapted", "adapted", "peft")
        settings = json.loads((folder / "adapter_config.json").read_text())
        report.equal((settings["task_type"], settings["modules_to_save"]), ("SEQ_CLS", [module]), f"{name}: task of the adapter")
        fresh = AutoModelForSequenceClassification.from_pretrained(base, id2label=labels, problem_type="single_label_classification")
        adapted = PeftModel.from_pretrained(fresh, folder)
        compare(report, adapted, folder, lines("said"), "adapted", f"{name}, adapter")

        # And back again, into a cache that never saw them.
        export = recipe.folder / "export"
        stages = {
            "base": {**stages["base"], "source": str(base)},
            "texts": stages["texts"],
            "whole": {"kind": "load_classifier", "source": str(export / "whole"), "dtype": "f32"},
            "adapted": {"kind": "load_classifier", "source": str(export / "adapted"), "model": "base"},
            "said": stages["said"],
        }
        with Recipe(f"classifier-again-{name}", stages, {"texts.jsonl": files["texts.jsonl"]}) as other:
            other.run()
            report.equal(other.metrics("said"), recipe.metrics("said"), f"{name}: exported and loaded again")


def theirs(report, name):
    """Classifiers that transformers made: labels with names, without, in several files, and a number; and ours once more by way of its folder."""
    make, _, module = ARCHITECTURES[name]
    labels = {0: "bread", 1: "number", 2: "question"}
    heads = {
        "named": {"id2label": labels, "label2id": {label: place for place, label in labels.items()}},
        "shards": {"id2label": labels, "problem_type": "single_label_classification"},
        "silent": {"num_labels": 2},
        "gauge": {"num_labels": 1},
    }
    fields = {"named": {}, "shards": {}, "silent": {"labels": ["bread", "rest"]}, "gauge": {}}
    rows = {
        "texts": [{"text": row["text"], "label": row["label"]} for row in TEXTS],
        "pair": [{"text": row["text"], "label": "bread" if row["label"] == "bread" else "rest"} for row in TEXTS],
        "marks": [{"text": row["text"], "label": row["mark"]} for row in TEXTS],
    }
    said = {"named": "texts", "shards": "texts", "silent": "pair", "gauge": "marks"}
    stages = {data: {"kind": "load_dataset", "source": f"{data}.jsonl", "format": "labelled"} for data in rows}
    for head, more in fields.items():
        task = "regression" if head == "gauge" else "classification"
        stages[head] = {"kind": "load_classifier", "source": f"models/{head}", "dtype": "f32", **more}
        stages[f"by_{head}"] = {"kind": "classify", "models": {head: head}, "data": said[head], "task": task, "max_length": LENGTH}
    files = {f"{data}.jsonl": lines for data, lines in rows.items()}
    with Recipe(f"classifier-theirs-{name}", stages, files) as recipe:
        base = recipe.folder / "models" / "base"
        make(base)
        for seed, (head, more) in enumerate(heads.items()):
            torch.manual_seed(11 + seed)
            config = AutoConfig.from_pretrained(base, **more)
            if name == "llama":
                # A classifier has no matrix for words then.
                config.tie_word_embeddings = head == "silent"
            model = AutoModelForSequenceClassification.from_config(config)
            with torch.no_grad():
                getattr(model, module).weight.mul_(3)
            folder = recipe.folder / "models" / head
            model.save_pretrained(folder, max_shard_size="20KB" if head == "shards" else "5GB")
            AutoTokenizer.from_pretrained(base).save_pretrained(folder)
        report.check(len(list((recipe.folder / "models" / "shards").glob("*.safetensors"))) > 1, f"{name}: several files of weights")
        recipe.run()
        for head in heads:
            paths = {file["name"]: Path(file["path"]) for file in recipe.show(f"by_{head}")["files"]}
            lines = [json.loads(line) for line in paths["predictions.jsonl"].read_text().splitlines()]
            model = AutoModelForSequenceClassification.from_pretrained(recipe.folder / "models" / head)
            if head == "silent":
                model.config.id2label = {0: "bread", 1: "rest"}
            if head == "gauge":
                model.config.problem_type = "regression"
            compare(report, model, base, lines, head, f"{name}, {head} of transformers")
            # What was loaded is written as what transformers opens again.
            folder = recipe.export(head, head)
            again, found = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
            report.equal(strangers(found), {}, f"{name}, {head}: every tensor has its place after a round")
            if head == "silent":
                report.equal(again.config.id2label, {0: "bread", 1: "rest"}, f"{name}: labels that were given")
            again.config.problem_type = model.config.problem_type
            compare(report, again, folder, lines, head, f"{name}, {head} after a round")


def main():
    """Both architectures, both ways."""
    torch.set_num_threads(2)
    report = Report("model_classifier")
    for name in ARCHITECTURES:
        check(report, name)
        theirs(report, name)
    report.done()


if __name__ == "__main__":
    main()
