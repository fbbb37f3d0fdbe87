"""Golden values of generation: greedy tokens of transformers.generate, and the distributions that its filters leave.

Usage: OMP_NUM_THREADS=1 python tests/golden/make/ml_generation.py
"""

import torch
from ml_common import llama, numbers, tokens, write
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

LENGTHS = [1, 9, 30, 4]
NEW = 60
FILTERS = [(1.0, 0, 1.0), (0.7, 0, 1.0), (2.5, 0, 1.0), (1.0, 1, 1.0), (0.8, 10, 1.0), (1.0, 64, 1.0), (1.0, 100, 1.0),
           (1.0, 0, 0.9), (1.3, 0, 0.5), (1.0, 0, 0.05), (0.6, 20, 0.8), (1.5, 5, 0.95)]  # fmt: skip
"""(temperature, top_k, top_p); 0 and 1.0 leave a filter out."""


def greedy(model, prompt, eos):
    """The new tokens, and how far the first choice was ahead of the second at the closest."""
    answer = model.generate(
        prompt.unsqueeze(0), attention_mask=torch.ones_like(prompt).unsqueeze(0), do_sample=False, max_new_tokens=NEW,
        eos_token_id=eos, pad_token_id=0, use_cache=True, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    lead = min((row[0].topk(2).values @ torch.tensor([1.0, -1.0], dtype=row.dtype)).item() for row in answer.logits)
    return answer.sequences[0, len(prompt) :], lead


golden = {}
# Untied: with tied embeddings a random model likes to repeat its last token.
model = llama(torch.float32, tie_word_embeddings=False)
model.generation_config.eos_token_id = None
for index, length in enumerate(LENGTHS):
    prompt = tokens(f"prompt {index}", length)
    new, lead = greedy(model, prompt, None)
    assert len(new) == NEW and lead > 1e-3, (index, lead)
    print(f"prompt {index}: {len(set(new.tolist()))} different tokens, smallest lead {lead:.4f}")
    golden[f"greedy.{index}"] = new
# A token that comes in the middle of the second answer ends it.
eos = golden["greedy.1"][5].item()
golden["eos"] = torch.tensor(eos)
for index, length in enumerate(LENGTHS):
    golden[f"ended.{index}"] = greedy(model, tokens(f"prompt {index}", length), eos)[0]

for case in range(3):
    logits = numbers(f"logits {case}", (64,), 4.0).float()
    if case == 2:
        # Equal logits at the edge of top_k are all kept.
        logits = (logits * 2).round() / 2
    golden[f"logits.{case}"] = logits
    for index, (temperature, top_k, top_p) in enumerate(FILTERS):
        if case == 2 and top_p < 1.0:
            continue  # which of equal logits top_p drops is up to a sort that is not stable
        filters = LogitsProcessorList()
        if temperature != 1.0:
            filters.append(TemperatureLogitsWarper(temperature))
        if top_k > 0:
            filters.append(TopKLogitsWarper(top_k))
        if top_p < 1.0:
            filters.append(TopPLogitsWarper(top_p))
        left = filters(torch.zeros((1, 1), dtype=torch.long), logits.unsqueeze(0))
        golden[f"probabilities.{case}.{index}"] = left[0].double().softmax(-1)
golden["filters"] = torch.tensor(FILTERS, dtype=torch.float64)
write("generation", golden)
