"""Golden values of evaluation: log-likelihoods of choices, preferences of a policy, and SQuAD's comparison of answers.

Writes tests/golden/data/evaluation: models.json for tests/evaluation.rs, answers.json for src/data/tests/files.rs.
The log-likelihoods are those of transformers on the tiny model of tests/golden/data/formats, of tokens cut as lm-evaluation-harness cuts
them (`_encode_pair` in lm_eval/api/model.py, `process_results` in lm_eval/api/task.py); the preferences those of DPOTrainer's log ratios;
the comparison of answers is the formula of SQuAD 2.0's evaluate-v2.0.py.
Pinned: torch 2.13.0, transformers 5.23.0.
Run: OMP_NUM_THREADS=1 python tests/golden/make/evaluation.py
"""

import collections
import json
import math
import pathlib
import re
import shutil
import string
import tempfile

import torch
import transformers

assert transformers.__version__ == "5.23.0" and torch.__version__.startswith("2.13.0")
DATA = pathlib.Path(__file__).parent.parent / "data"
BETA = 0.1

QUESTIONS = [
    {"question": "What is flour made of?", "choices": ["wheat", "stone in the sun", "sea"], "answer": 0},
    {"question": "How many loaves?", "choices": ["1", "2", "many loaves"], "answer": "B"},
    {"question": "What is in a {starter}?", "choices": ["flour and water", "milk"], "answer": "milk"},
    {"question": "Was ist Maß?", "choices": ["Brot 🦀", "é", "x", "loaf"], "answer": 3},
]
EXAMPLE = {"question": "What rises?", "choices": ["dough", "stone"], "answer": 0}
CHATS = [
    {"prompt": [{"role": "user", "content": "say loaf"}], "choices": ["loaf", "loaf loaf", "7"], "answer": 1},
    {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "again"}],
        "choices": ["no", "2 loaves"],
        "answer": 1,
    },
]
PAIRS = [
    {"prompt": "How is the loaf?", "chosen": " Crisp.", "rejected": " Burnt and black."},
    {"prompt": "Say:", "chosen": " a longer answer than the other", "rejected": " no"},
    {"prompt": "Bread", "chosen": " rises", "rejected": " falls"},
    {"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 11"},
    {"prompt": "Salt?", "chosen": " A pinch.", "rejected": " None at all, thanks."},
]
ANSWERS = [
    ("Paris", "paris"),
    ("The cat sat.", "cat sat"),
    ("a an the", ""),
    ("", ""),
    ("", "x"),
    ("the theatre", "theatre"),
    ("theatre a b", "b"),
    ("A. B. Cook", "ab cook"),
    ("in 1999, in March", "March 1999"),
    ("in in in", "in"),
    ("«An» example", "example"),
    ("an-other answer", "another answer"),
    ("it's the_end", "its theend"),
    ("a\u00a0loaf\tof\nbread", "loaf of bread"),
    ("x\x1cy", "x y"),
    ("ÉCLAIR à la carte", "éclair à la carte"),
    ("ΟΔΟΣ", "οδος"),
    ("“the” loaf—a crumb", "loaf crumb"),
    ("3.14", "314"),
    ("the loaf the loaf", "loaf"),
    ("no common words", "here there"),
    ("e\u0301 a\u0301 a", "é"),
]


def place(question):
    answer = question["answer"]
    if isinstance(answer, int):
        return answer
    return question["choices"].index(answer) if answer in question["choices"] else ord(answer) - ord("A")


def folder(into, epsilon):
    shutil.copytree(DATA / "formats" / "tiny", into)
    shutil.copy(DATA / "formats" / "tiny.safetensors", into / "model.safetensors")
    config = json.loads((into / "config.json").read_text())
    # What the conversion from GGUF left; the weights beside it are plain f32.
    config.pop("quantization_config")
    config["rms_norm_eps"] = epsilon or config["rms_norm_eps"]
    (into / "config.json").write_text(json.dumps(config))
    return into


def log_probabilities(model, ids, prompt):
    """log p of the tokens from `prompt` on."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    found = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return found[prompt - 1 :]


def encode_pair(tokenizer, context, continuation):
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole, alone = tokenizer(context + continuation).input_ids, tokenizer(context).input_ids
    return whole, len(alone)


def examine(model, tokenizer, questions, context, gap, continuation):
    rows = []
    for question in questions:
        found = []
        for at, choice in enumerate(question["choices"]):
            ids, prompt = encode_pair(tokenizer, context(question), gap + continuation(at, choice))
            found.append(log_probabilities(model, ids, prompt).sum().item())
        lengths = [len(continuation(at, choice)) for at, choice in enumerate(question["choices"])]
        normalized = [x / n for x, n in zip(found, lengths)]
        gold = place(question)
        rows.append(
            {
                "log_likelihoods": found,
                "correct": found.index(max(found)) == gold,
                "correct_normalized": normalized.index(max(normalized)) == gold,
            }
        )
    return rows


def listed(question):
    return "".join(f"{string.ascii_uppercase[i]}. {c}\n" for i, c in enumerate(question["choices"]))


def exam(model, tokenizer):
    plain = lambda q: f"Question: {q['question']}\nAnswer:"
    letters = lambda q: f"Question: {q['question']}\n{listed(q)}Answer:"
    shot = f"Question: {EXAMPLE['question']}\nAnswer: {EXAMPLE['choices'][EXAMPLE['answer']]}\n\n"
    text = lambda at, choice: choice
    letter = lambda at, choice: string.ascii_uppercase[at]
    chat = lambda q: tokenizer.apply_chat_template(q["prompt"], add_generation_prompt=True, tokenize=False)
    return {
        "zero_shot": examine(model, tokenizer, QUESTIONS, plain, " ", text),
        "one_shot": examine(model, tokenizer, QUESTIONS, lambda q: "Bake.\n\n" + shot + plain(q), " ", text),
        "letters": examine(model, tokenizer, QUESTIONS, letters, " ", letter),
        "bare": examine(model, tokenizer, QUESTIONS, lambda q: q["question"] + "\n", "", text),
        "chats": examine(model, tokenizer, CHATS, chat, "", text),
    }


def share(differences):
    return sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in differences) / len(differences)


def preferences(policy, reference, tokenizer):
    likelihoods, normalized, rewards = [], [], []
    for pair in PAIRS:
        sums, counts, held = [], [], []
        for side in ["chosen", "rejected"]:
            ids = tokenizer(pair["prompt"] + pair[side] + tokenizer.eos_token).input_ids
            alone = tokenizer(pair["prompt"]).input_ids
            assert ids[: len(alone)] == alone
            own = log_probabilities(policy, ids, len(alone))
            sums.append(own.sum().item())
            counts.append(len(own))
            held.append(log_probabilities(reference, ids, len(alone)).sum().item())
        likelihoods.append(sums[0] - sums[1])
        normalized.append(sums[0] / counts[0] - sums[1] / counts[1])
        rewards.append(BETA * ((sums[0] - held[0]) - (sums[1] - held[1])))
    return {
        "likelihood_accuracy": share(likelihoods),
        "likelihood_margin": sum(likelihoods) / len(PAIRS),
        "normalized_accuracy": share(normalized),
        "normalized_margin": sum(normalized) / len(PAIRS),
        "accuracy": share(rewards),
        "margin": sum(rewards) / len(PAIRS),
        "loss": sum(math.log1p(math.exp(-r)) for r in rewards) / len(PAIRS),
        "pairs": len(PAIRS),
    }


def normalize_answer(s):
    text = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text, flags=re.UNICODE).split())


def f1(prediction, gold):
    predicted, known = normalize_answer(prediction).split(), normalize_answer(gold).split()
    if not predicted or not known:
        return float(predicted == known)
    same = sum((collections.Counter(known) & collections.Counter(predicted)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(known)
    return 2 * precision * recall / (precision + recall)


with tempfile.TemporaryDirectory() as place_of_models:
    top = pathlib.Path(place_of_models)
    paths = [folder(top / "model", None), folder(top / "other", 0.01)]
    load = transformers.AutoModelForCausalLM.from_pretrained
    model, other = (load(path, dtype=torch.float32, attn_implementation="eager").eval() for path in paths)
    tokenizer = transformers.AutoTokenizer.from_pretrained(paths[0])
    golden = {
        "questions": QUESTIONS,
        "example": EXAMPLE,
        "chats": CHATS,
        "exam": exam(model, tokenizer),
        "pairs": PAIRS,
        "preferences": preferences(model, other, tokenizer),
    }
OUT = DATA / "evaluation"
OUT.mkdir(exist_ok=True)
(OUT / "models.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
answers = [
    {"answer": a, "known": k, "normalized": normalize_answer(a), "match": normalize_answer(a) == normalize_answer(k), "f1": f1(a, k)}
    for a, k in ANSWERS
]
(OUT / "answers.json").write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n")
