"""Tokens and loss masks of TRL's SFTTrainer, for src/data/tests/tokens.rs.

Trains a small byte-level BPE tokenizer, wraps it for transformers, and lets SFTTrainer prepare datasets with it.
Pinned: trl 1.16.0, transformers 5.23.0, tokenizers 0.22.2, torch 2.13.0.
Run: OMP_NUM_THREADS=1 python tests/golden/make/data_tokens.py
"""

import json
import pathlib
import tempfile

import datasets
import tokenizers
import transformers
import trl
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

assert trl.__version__ == "1.16.0" and transformers.__version__ == "5.23.0"
OUT = pathlib.Path(__file__).parent.parent / "data" / "data"
TEMPLATES = {t["name"]: t["source"] for t in json.loads((OUT / "templates.json").read_text())}
SENTENCES = [
    "What is the capital of France? The capital of France is Paris.",
    "Describe a process of making bread: mix flour and water, wait, bake.",
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "system user assistant\n\nThe answer is 42.\n1. one\n2. two\n",
    "def add(a, b):\n    return a + b\n",
    "Wie geht es dir? Danke, gut. Größe und Maß.",
]


def tokenizer(with_bos):
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"]
    small = tokenizers.Tokenizer(models.BPE())
    small.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    small.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    small.train_from_iterator(
        SENTENCES * 20,
        trainers.BpeTrainer(vocab_size=420, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    byte_level = processors.ByteLevel(trim_offsets=True)
    if with_bos:
        begin = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", small.token_to_id("<|endoftext|>"))]
        )
        small.post_processor = processors.Sequence([byte_level, begin])
    else:
        small.post_processor = byte_level
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=small, bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<pad>"
    )


def turn(role, content):
    return {"role": role, "content": content}


CHATS = [
    [turn("user", "What is the capital of France?"), turn("assistant", "The capital of France is Paris.")],
    [turn("system", "Be brief."), turn("user", "Hi!\n"), turn("assistant", "\n  Hello.  \n\n")],
    [turn("user", "Größe? 🦀"), turn("assistant", "Maß 🦀🦀 ist gut.")],
    [turn("user", ""), turn("assistant", "")],
    [
        turn("user", "1. one"),
        turn("assistant", "2. two"),
        turn("user", "and then?"),
        turn("assistant", "The answer is 42."),
    ],
    [turn("user", "What is " * 60), turn("assistant", "the answer " * 40)],
]
TEXTS = ["What is the capital?", "", "def add(a, b):\n    return a + b\n", "done<|im_end|>", "Größe 🦀 " * 30]
PAIRS = [
    {"prompt": "Q: What is the capital of France?\nA:", "completion": " Paris."},
    {"prompt": "The answer is ", "completion": "42."},
    {"prompt": "The capi", "completion": "tal of France"},
    {"prompt": "wait ", "completion": " bake"},
    {"prompt": "", "completion": "You are a helpful AI assistant"},
    {"prompt": "system\n", "completion": "\n\nuser"},
    {"prompt": "🦀", "completion": "🦀"},
    {"prompt": "flour and water " * 30, "completion": "mix"},
]


def prepare(tok, rows, **options):
    """Ids and labels as the trainer makes them; rows that it drops are missing."""
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tok), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        config = trl.SFTConfig(
            output_dir=folder, use_cpu=True, report_to=[], shuffle_dataset=False, bf16=False,
            **{"max_length": None, **options},
        )
        trainer = trl.SFTTrainer(model, config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tok)
        return [
            {"ids": row["input_ids"], "trained": [int(label != -100) for label in row["labels"]]}
            for row in trainer.train_dataset
        ]


def main():
    datasets.disable_progress_bars()
    out = []
    for with_bos in (False, True):
        tok = tokenizer(with_bos)
        name = "tokenizer_bos.json" if with_bos else "tokenizer.json"
        (OUT / name).write_text(tok.backend_tokenizer.to_str() + "\n")

        def case(kind, rows, ours, template="smollm2", loss_on="completions", max_length=None, cut="keep_start", **options):
            tok.chat_template = TEMPLATES[template]
            options = {"truncation_mode": cut, "max_length": max_length, **options}
            out.append({
                "name": kind, "tokenizer": name, "template": template, "loss_on": loss_on, "max_length": max_length,
                "truncation": cut, "rows": ours, "expected": prepare(tok, rows, **options),
            })

        texts = [{"text": text} for text in TEXTS]
        case("text", texts, texts)
        case("text cut", texts, texts, max_length=8)
        case("pairs", PAIRS, PAIRS)
        case("pairs, all", PAIRS, PAIRS, loss_on="all", completion_only_loss=False)
        case("pairs cut", PAIRS, PAIRS, max_length=12)
        case("pairs cut, end kept", PAIRS, PAIRS, max_length=12, cut="keep_end")
        chats = [{"messages": chat} for chat in CHATS]
        # A conversation whose last turn is the completion is TRL's conversational prompt-completion.
        split = [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in CHATS]
        for template in ("smollm2", "zephyr"):
            case("last turn", split, chats, template=template, loss_on="last-turn")
        case("last turn cut", split, chats, loss_on="last-turn", max_length=64, cut="keep_end")
        case("chat, all", chats, chats, loss_on="all")
        # What `smollm2` gives without the tags and with the last line's end must be what the tags say.
        case("generation tags", chats, chats, template="generation", assistant_only_loss=True)
    (OUT / "tokens.json").write_text(json.dumps(out, ensure_ascii=False) + "\n")
    for path in sorted(OUT.iterdir()):
        print(path, path.stat().st_size)


main()
