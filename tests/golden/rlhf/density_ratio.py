"""Golden values of density ratios: log-probabilities of completions under two tiny models, by a plain loop of transformers in f64.

Usage: OMP_NUM_THREADS=1 python tests/golden/rlhf/density_ratio.py (the environment of tests/interop/requirements.txt)

The models are ../data/formats/tiny with ../data/formats/tiny.safetensors, whose matrices (not the norms) are multiplied in f32 by 16 for the
strong one and by 8 for the weak one: as they are they have no opinions. tests/without_a_judge.rs makes the same two. Source of the score:
arXiv 2411.02481, equation 2.

density_ratio.jsonl, one line a row and way:
    {"case", "prompt", "completion", "criteria", "examples", "strong", "weak", "strong_tokens", "weak_tokens", "score", "score_per_token"}
where `prompt` is a text or a list of messages, `strong` and `weak` are sums over `*_tokens` tokens, the end among them, the score is their
difference and that per token the difference of means. `case` is `plain` or `dressed`: with criteria and examples before the prompt, or
before the last turn of the user, a blank line between them.
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from common import HERE, Golden
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

FORMATS = HERE.parent / "data" / "formats"
CRITERIA = "Be short."
EXAMPLES = "Good: 1. Bad: 2."
ROWS = [
    ("How is the loaf?", " Crisp."),
    ("How is the loaf?", " Burnt, and burnt again."),
    ([{"role": "user", "content": "say 1"}], "loaf 1"),
    ([{"role": "user", "content": "say 1"}], "1"),
    ([{"role": "user", "content": "say"}, {"role": "assistant", "content": "what?"}, {"role": "user", "content": "a loaf"}], "a loaf"),
]


def models():
    """Both, in f64."""
    for factor in (16.0, 8.0):
        with tempfile.TemporaryDirectory() as folder:
            for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                shutil.copyfile(FORMATS / "tiny" / file, Path(folder) / file)
            tensors = load_file(FORMATS / "tiny.safetensors")
            tensors = {name: tensor if tensor.ndim == 1 else tensor * factor for name, tensor in tensors.items()}
            save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            config = json.loads((Path(folder) / "config.json").read_text())
            # What transformers notes of a model out of a GGUF file; the weights are plain numbers.
            del config["quantization_config"]
            (Path(folder) / "config.json").write_text(json.dumps(config))
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
            yield model, AutoTokenizer.from_pretrained(folder)


def tokens(tokenizer, prompt, completion):
    """(ids of both, how many are the prompt's)."""
    if isinstance(prompt, str):
        before = tokenizer(prompt).input_ids
        whole = tokenizer(prompt + completion).input_ids + [tokenizer.eos_token_id]
    else:
        before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        turns = [*prompt, {"role": "assistant", "content": completion}]
        whole = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    assert whole[: len(before)] == before
    return whole, len(before)


def dressed(prompt):
    """With criteria and examples."""
    put = lambda text: f"{CRITERIA}\n\n{EXAMPLES}\n\n{text}"  # noqa: E731
    if isinstance(prompt, str):
        return put(prompt)
    return [*prompt[:-1], {**prompt[-1], "content": put(prompt[-1]["content"])}]


@torch.no_grad()
def log_probability(model, tokenizer, prompt, completion):
    """(the sum over the completion's tokens, how many they are)."""
    ids, start = tokens(tokenizer, prompt, completion)
    logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    found = torch.log_softmax(logits, -1)[torch.arange(start - 1, len(ids) - 1), torch.tensor(ids[start:])]
    return found.sum().item(), len(ids) - start


if __name__ == "__main__":
    golden = Golden(trl=None)
    (strong, weak), lines = list(models()), []
    for case in ["plain", "dressed"]:
        for prompt, completion in ROWS:
            seen = dressed(prompt) if case == "dressed" else prompt
            (a, n), (b, m) = (log_probability(*one, seen, completion) for one in (strong, weak))
            lines.append({"case": case, "prompt": prompt, "completion": completion,
                          "criteria": CRITERIA if case == "dressed" else None, "examples": EXAMPLES if case == "dressed" else None,
                          "strong": a, "weak": b, "strong_tokens": n, "weak_tokens": m, "score": a - b,
                          "score_per_token": a / n - b / m})  # fmt: skip
    sizes = sorted(abs(line["score"]) for line in lines)
    assert sizes[0] > 1e-2 and sizes[-1] > 0.5, f"the models differ: {sizes}"
    golden.cases("density_ratio", lines)
    golden.close()
