"""Golden values of prompt tuning and prefix tuning: PEFT's logits, gradients and greedy texts on the tiny Llama with virtual tokens by
formula, and the prefix that PEFT makes of tokens.

Usage: OMP_NUM_THREADS=1 python tests/golden/make/ml_soft.py
Logits are those of the last tokens of the rows. `wide` is a model whose heads are wider than its width says.
"""

import torch
from ml_common import agree, llama, numbers, tokens, write
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values
from torch.nn import functional as F

ROWS = [tokens(f"row {index}", length) for index, length in enumerate([13, 1, 7, 2, 24])]
VIRTUAL = 5
NAME = "prompt_encoder.default.embedding.weight"
NEW = 12
"""Tokens of a greedy text."""


def soft(settings, dtype, virtual=VIRTUAL, **changes):
    """The tiny model with virtual tokens by formula."""
    model = get_peft_model(llama(dtype, **changes), settings(task_type="CAUSAL_LM", num_virtual_tokens=virtual))
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert [name for name, _ in trained] == [NAME]
    with torch.no_grad():
        for name, parameter in trained:
            parameter.data = numbers(name, tuple(parameter.shape), 0.2).to(dtype)
    return model.eval()


def logits_of(model, row):
    """The logits of a row's own tokens; prompt tuning gives those of the virtual tokens, too."""
    return model(input_ids=row.unsqueeze(0)).logits[0][-len(row) :]


def backward(model):
    """Logits of each row's last token, the sum of the losses of every token but the first of a row, and its gradient."""
    logits = [logits_of(model, row) for row in ROWS]
    loss = sum(F.cross_entropy(values[:-1], row[1:], reduction="sum") for row, values in zip(ROWS, logits) if len(row) > 1)
    loss.backward()
    return torch.stack([values[-1] for values in logits]), loss, model.get_parameter(NAME).grad


@torch.no_grad()
def greedy(model):
    """PEFT's greedy text after each row, with a cache; each is what the model says without one."""
    texts = []
    for row in ROWS:
        made = model.generate(input_ids=row.unsqueeze(0), max_new_tokens=NEW, do_sample=False, eos_token_id=None)[0]
        text = made[-NEW:]
        whole = row
        for token in text:
            assert logits_of(model, whole)[-1].argmax() == token, "a cache changes PEFT's text"
            whole = torch.cat([whole, token.unsqueeze(0)])
        texts.append(text)
    assert len({tuple(text.tolist()) for text in texts}) > 1
    return torch.stack(texts)


def golden(settings):
    """All that is kept of one method."""
    logits, loss, gradient = backward(soft(settings, torch.float64))
    their_logits, their_loss, theirs = backward(soft(settings, torch.float32))
    agree(their_logits, logits, 1e-5, "logits of PEFT in f32")
    agree(their_loss, loss, 1e-5, "loss of PEFT in f32")
    agree(theirs, gradient, 1e-5, "gradient of PEFT in f32")
    model = soft(settings, torch.float64)
    with torch.no_grad():
        wide = soft(settings, torch.float64, virtual=1, head_dim=12, num_key_value_heads=1)
        wide = torch.stack([logits_of(wide, row)[-1] for row in ROWS])
        with model.disable_adapter():
            base = torch.stack([logits_of(model, row)[-1] for row in ROWS])
    assert (base - logits).abs().max() > 1e-3, "virtual tokens change nothing"
    return {"logits": logits, "loss": loss, "gradient": gradient, "greedy": greedy(model), "wide": wide, "base": base}


@torch.no_grad()
def activations():
    """The prefix of the first tokens of a row, and what the model says behind it."""
    model = soft(PrefixTuningConfig, torch.float64)
    text = ROWS[0][:VIRTUAL]
    with model.disable_adapter():
        seen = model(input_ids=text.unsqueeze(0), use_cache=True).past_key_values
    prefix = initialize_kv_prefix_from_past_key_values(model, past_key_values=seen)
    # Real tokens that are seen as keys and values, and not computed again: the row is as if they were its beginning.
    behind = logits_of(model, ROWS[2])[-1]
    with model.disable_adapter():
        whole = logits_of(model, torch.cat([text, ROWS[2]]))[-1]
    agree(behind, whole, 1e-12, "a prefix of activations is the text itself")
    return {"activations": prefix, "behind": behind}


write("prompt_tuning", golden(PromptTuningConfig))
write("prefix_tuning", golden(PrefixTuningConfig) | activations())
