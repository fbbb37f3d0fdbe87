"""A model that `init_model` made is what transformers opens: its tokenizer, its configuration, its weights and their spread;
and transformers' own trainer of the same tokenizer gives the same one.
"""

import math

import torch
from support.levain import Recipe, Report
from support.reference import held_out_loss
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

WORDS = "the levain rises twice, the loaf is crisp and warm; bread, breads and bakers' 42 Größen\n".split(" ")
TEXTS = [" ".join(WORDS[(i * j + j) % len(WORDS)] for j in range(1, 6 + i % 17)) for i in range(120)]
VOCABULARY, RANGE, LAYERS = 300, 0.05, 3


def theirs():
    """The tokenizer that the `tokenizers` package trains."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, min_frequency=2, special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def main():
    """One model."""
    torch.set_num_threads(2)
    report = Report("model_init")
    stages = {
        "texts": {"kind": "load_dataset", "source": "texts.jsonl", "format": "text"},
        "fresh": {
            "kind": "init_model", "data": "texts", "vocabulary": VOCABULARY, "hidden": 64, "layers": LAYERS, "heads": 4,
            "key_value_heads": 2, "context": 128, "rope_theta": 5e4, "initializer_range": RANGE,
        },
        "scores": {"kind": "evaluate", "models": {"fresh": "fresh"}, "data": "texts"},
    }  # fmt: skip
    with Recipe("init", stages, {"texts.jsonl": [{"text": text} for text in TEXTS]}) as recipe:
        recipe.run()
        folder = recipe.export("fresh", "fresh")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        strangers = any(found[key] for key in ["missing_keys", "unexpected_keys", "mismatched_keys"])
        report.check(not strangers, "every tensor has its place")

        report.equal(tokenizer.get_vocab(), theirs().get_vocab(), f"vocabulary of {VOCABULARY}")
        samples = [*TEXTS, " Ein Laib: 3 €?\n", "levain<|endoftext|>"]
        report.equal([tokenizer(t).input_ids for t in samples], [theirs().encode(t).ids for t in samples], "ids of texts")
        report.equal([tokenizer.decode(tokenizer(t).input_ids) for t in samples], samples, "texts of ids")
        ends = (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id)
        report.equal(ends, (0, 1, None), "special tokens")

        config = model.config
        report.equal((config.eos_token_id, config.pad_token_id, config.bos_token_id), ends, "special tokens of the model")
        shape = (config.vocab_size, config.num_key_value_heads, config.head_dim, config.max_position_embeddings, config.intermediate_size)
        report.equal(shape, (VOCABULARY, 2, 16, 128, 192), "shape")
        report.equal((config.initializer_range, config.rope_parameters["rope_theta"]), (RANGE, 5e4), "range and base of the rotary frequencies")
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                report.check(bool((weight == 1).all()), f"{name} is 1")
                continue
            into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
            wanted = RANGE / math.sqrt(2 * LAYERS) if into_stream else RANGE
            # Of n draws the spread is known to 1/√(2n), the mean to 1/√n; five times that is one in a million.
            slack = 5 / math.sqrt(weight.numel())
            report.near(weight.std().item(), wanted, slack, f"{name}: spread")
            report.check(abs(weight.mean().item()) < wanted * slack, f"{name}: mean {weight.mean().item():.1e}")

        loss, accuracy = held_out_loss(model.eval(), recipe.tokens("scores"))
        ours = recipe.metrics("scores")["models"]["fresh"]
        report.near(ours["loss"], loss, 1e-5, "loss")
        report.near(ours["token_accuracy"], accuracy, 1e-9, "accuracy")
    report.done()


if __name__ == "__main__":
    main()
