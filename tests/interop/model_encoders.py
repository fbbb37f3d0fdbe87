"""Encoders in four and eight bits, merged and with adapters from elsewhere, both ways, on small BERTs: one with a head for masked tokens
(`BertForMaskedLM`, whose names begin with `bert.`) and one alone with its pooler (`BertModel`, whose names do not). What `quantize` writes is
opened by transformers in every class and stands for bitsandbytes' numbers bit for bit; what transformers packed, the pooler and the head's
linear among it, is loaded here; `merge` is PEFT's `merge_and_unload`, biases included; adapters that PEFT made on either class are loaded,
trained further and opened there again.
"""

import copy
import json
import os
import warnings

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # bitsandbytes compiles small functions, for which a compiler would be needed

import bitsandbytes as bnb  # noqa: E402
import torch  # noqa: E402
from model_adapters import compare_merged  # noqa: E402
from model_bert import hidden_loss  # noqa: E402
from model_bert import ours as states_of  # noqa: E402
from model_classifier import bert_tokenizer  # noqa: E402
from model_quantized import dequantized, parts_of, quantized, state_of, tensors_of  # noqa: E402
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from support.levain import Recipe, Report  # noqa: E402
from transformers import (  # noqa: E402
    AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, BertConfig, BertForMaskedLM, BertModel, BitsAndBytesConfig,
)  # fmt: skip

TEXTS = [
    "how many loaf or crust is the warm loaf ?",
    "1 or 2 . 3 or 4 .",
    "the crumb is flat",
    "dear loaf how warm is a crust ? 5 6 7 8 9 .",
    "a loaf a loaf a loaf",
]
FILES = {"texts.jsonl": [{"text": text} for text in TEXTS]}
TEXT_STAGE = {"kind": "load_dataset", "source": "texts.jsonl", "format": "text"}
BASES = {"headed": (BertForMaskedLM, AutoModelForMaskedLM), "alone": (BertModel, AutoModel)}
SCHEMES = {"four": {"scheme": "nf4"}, "eight": {"scheme": "int8"}}
SKIPPED = "attention.output.dense"
BLOCK = 64
SETTINGS = {
    "four": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    ),
    "eight": BitsAndBytesConfig(load_in_8bit=True),
}
PACKED = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
ALONE = {
    # All linears, the pooler's among them, and names that leave it out.
    "all": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="FEATURE_EXTRACTION", init_lora_weights=False),
    "named": LoraConfig(r=3, use_rslora=True, target_modules=["query", "output.dense"], init_lora_weights=False),
    "ia3": IA3Config(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"], init_ia3_weights=False),
}
HEADED = {
    # All linears but the decoder, that of the head among them.
    "all": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False),
    "dora": LoraConfig(r=2, use_dora=True, target_modules=["query", "value", "intermediate.dense"], init_lora_weights=False),
    "ia3": IA3Config(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"], init_ia3_weights=False),
}
OWN = {
    "lora": {"kind": "lora", "r": 4, "alpha": 8},
    "dora": {"kind": "lora", "r": 4, "alpha": 8, "dora": True, "targets": ["attention.self", "layer.1.output.dense"]},
    "ia3": {"kind": "ia3", "targets": ["key", "value", "output.dense"], "feedforward": "output.dense"},
}
TRAINING = {"kind": "masked_lm", "data": "texts", "batch": 5, "micro_batch": 2, "warmup": 0}


def save(recipe):
    """Random encoders, larger than usual at the start so that they have opinions, with their tokenizer; each in its class."""
    tokenizer = bert_tokenizer()
    shape = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, initializer_range=0.15,
    )  # fmt: skip
    models = {}
    for number, (name, (make, auto)) in enumerate(BASES.items()):
        torch.manual_seed(number)
        model = make(shape)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                # Biases begin at 0, where nothing could be seen of them.
                if key.endswith("bias"):
                    parameter.normal_(0, 0.1)
        model.save_pretrained(recipe.folder / name)
        tokenizer.save_pretrained(recipe.folder / name)
        models[name] = auto.from_pretrained(recipe.folder / name).eval()
    return models


def ours(report, recipe, folder, rows):
    """What our crates make of these rows with the encoder in `folder`."""
    return states_of(report, recipe, folder, rows, bert_tokenizer().mask_token_id)


def rows_of(recipe):
    """The rows that `loss` reads, as the program that shows states takes them."""
    return [{"input_ids": row["input_ids"], "free": row["trained"]} for row in recipe.tokens("loss")]


def packed_by_theirs(weight, scheme):
    """What bitsandbytes stores of a weight: tensors by what follows the name of its module."""
    if scheme == "four":
        return {f"weight{key}": value for key, value in quantized(weight, BLOCK, True).items()}
    largest = weight.detach().abs().amax(1)
    codes = (weight.detach() * (127.0 / largest).unsqueeze(1)).round().to(torch.int8)
    return {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}


def values(parts):
    """The numbers that the tensors of a module's weight stand for."""
    if "SCB" in parts:
        return parts["weight"].float() * (parts["SCB"] / 127.0).unsqueeze(1)
    parts = {key.removeprefix("weight"): value for key, value in parts.items()}
    return dequantized(parts[""], state_of(parts))


def parts_of_module(tensors, module):
    """Everything of a module's weight, by what follows the module's name."""
    found = parts_of(tensors, f"{module}.weight")
    found = {f"weight{key}": value for key, value in found.items()}
    found.update({word: tensors[f"{module}.{word}"] for word in ["SCB", "weight_format"] if f"{module}.{word}" in tensors})
    return found


def unpacked(model, tensors):
    """`model` with the numbers that the tensors of a folder stand for; the names of the weights that were packed."""
    names = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parts = parts_of_module(tensors, name.removesuffix(".weight")) if name.endswith(".weight") else {}
            if len(parts) > 1:
                names.append(name)
                parameter.copy_(values(parts))
            else:
                parameter.copy_(tensors[name])
    return names


def same(a, b):
    """Whether two tensors are there and equal to the bit."""
    return a is not None and b is not None and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def compare_packed(report, what, model, tensors, scheme):
    """Every tensor that we wrote against bitsandbytes' of the same weight; the modules that are packed, by the names of the file."""
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and ".layer." in name]
    linears = [name for name in linears if not name.endswith(SKIPPED)]
    wanted = {}
    for name, parameter in model.named_parameters():
        module = name.removesuffix(".weight")
        if module in linears and name.endswith(".weight"):
            wanted.update({f"{module}.{key}": value for key, value in packed_by_theirs(parameter, scheme).items()})
        else:
            wanted[name] = parameter.detach()
    report.equal(sorted(tensors), sorted(wanted), f"{what}: names of {len(wanted)} tensors")
    differ = [name for name, tensor in wanted.items() if not same(tensors.get(name), tensor)]
    report.equal(differ, [], f"{what}: every tensor is bitsandbytes' bit for bit")
    return linears


def opened(report, what, folder, tensors, linears, auto):
    """The folder in one of transformers' classes: what it takes for quantized, and the numbers that this stands for."""
    model, found = auto.from_pretrained(folder, output_loading_info=True)
    bare = {name.removeprefix("bert.") for name in linears}
    modules = {name: module for name, module in model.named_modules() if isinstance(module, PACKED)}
    report.equal({name.removeprefix("bert.") for name in modules}, bare, f"{what}: layers that it takes for quantized")
    lost = [name for name in found["missing_keys"] if ".layer." in name] + list(found["mismatched_keys"])
    strange = [name for name in found["unexpected_keys"] if ".layer." in name]
    report.equal(lost + strange, [], f"{what}: every tensor of a layer has its place")
    stored = {name.removeprefix("bert."): name for name in linears}
    differ = []
    for name, module in modules.items():
        wanted = parts_of_module(tensors, stored[name.removeprefix("bert.")])
        weight = module.weight
        if isinstance(module, bnb.nn.Linear4bit):
            right = torch.equal(dequantized(weight.data, weight.quant_state), values(wanted))
            if module.in_features % BLOCK == 0:
                # bitsandbytes' library for CPUs unpacks rows that are not whole blocks wrongly.
                right = right and torch.equal(bnb.functional.dequantize_4bit(weight.data, weight.quant_state), values(wanted))
        else:
            largest = weight.SCB if weight.SCB is not None else module.state.SCB
            right = torch.equal(weight.data, wanted["weight"]) and torch.equal(largest, wanted["SCB"])
        differ += [] if right else [name]
    report.equal(differ, [], f"{what}: numbers that are unpacked")


def compare_states(report, what, recipe, folder, model, rows):
    """Our states of every row with the encoder in `folder`, and the pooled ones, against those of `model`, an encoder."""
    told = ours(report, recipe, folder, rows)
    far = 0.0
    for row, found in zip(rows, told["rows"]):
        with torch.no_grad():
            theirs = model(input_ids=torch.tensor([row["input_ids"]]))
        for key, expected in [("states", theirs.last_hidden_state[0]), ("pooled", theirs.pooler_output)]:
            if expected is not None and found[key] is not None:
                own = torch.tensor(found[key]).reshape(expected.shape)
                far = max(far, ((own - expected).abs().max() / expected.abs().max()).item())
    report.check(far < 2e-5, f"{what}: states are {far:.1e} apart (at most 2e-05)")
    return told


def ours_in_theirs(report):
    """Encoders that we quantized."""
    stages = {name: {"kind": "load_model", "source": name, "dtype": "f32"} for name in BASES}
    for name in BASES:
        for word, scheme in SCHEMES.items():
            stages[f"{name}_{word}"] = {"kind": "quantize", "model": name, "skip": [SKIPPED], **scheme}
    stages["texts"] = TEXT_STAGE
    names = ["headed", *(f"headed_{word}" for word in SCHEMES)]
    stages["loss"] = {"kind": "masked_lm_loss", "models": {name: name for name in names}, "data": "texts"}
    with Recipe("encoders-quantized", stages, FILES) as recipe:
        models = save(recipe)
        recipe.run()
        rows, scores = rows_of(recipe), recipe.metrics("loss")["models"]
        hidden = ours(report, recipe, recipe.export("headed", "headed"), rows)["rows"]
        before = hidden_loss(models["headed"], rows, hidden)
        report.near(scores["headed"]["loss"], before, 1e-5, "loss before")
        for name, (_, auto) in BASES.items():
            for word in SCHEMES:
                what = f"{name} in {word}"
                folder = recipe.export(f"{name}_{word}", f"{name}-{word}")
                tensors = tensors_of(folder)
                linears = compare_packed(report, what, models[name], tensors, word)
                for other in [AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification]:
                    opened(report, f"{what} in {other.__name__}", folder, tensors, linears, other)
                plain = copy.deepcopy(models[name])
                report.equal(len(unpacked(plain, tensors)), len(linears), f"{what}: weights that were unpacked")
                if name == "headed":
                    loss = hidden_loss(plain, rows, hidden)
                    report.check(abs(loss - before) > 1e-5 * before, f"{what}: quantization changes the loss from {before:.6f} to {loss:.6f}")
                    report.near(scores[f"{name}_{word}"]["loss"], loss, 1e-5, f"{what}: loss")
                else:
                    compare_states(report, what, recipe, folder, plain, rows)


def theirs_in_ours(report):
    """Encoders that transformers and bitsandbytes quantized: all linears but the decoder."""
    stages, names = {"texts": TEXT_STAGE, "headed": {"kind": "load_model", "source": "headed", "dtype": "f32"}}, ["headed"]
    for name in BASES:
        for word in SCHEMES:
            stages[f"{name}_{word}"] = {"kind": "load_model", "source": f"theirs/{name}-{word}", "dtype": "f32"}
    for word in SCHEMES:
        stages[f"fresh_{word}"] = {"kind": "lora", "model": f"headed_{word}", "r": 2}
        stages[f"tuned_{word}"] = {**TRAINING, "model": f"fresh_{word}", "learning_rate": 1e-2, "max_steps": 3}
        stages[f"merged_{word}"] = {"kind": "merge", "model": f"tuned_{word}", "into": "dequantized"}
        names += [f"headed_{word}", f"tuned_{word}", f"merged_{word}"]
    stages["loss"] = {"kind": "masked_lm_loss", "models": {name: name for name in names}, "data": "texts"}
    with Recipe("encoders-theirs", stages, FILES) as recipe:
        models, tokenizer = save(recipe), bert_tokenizer()
        for name, (_, auto) in BASES.items():
            for word, settings in SETTINGS.items():
                folder = recipe.folder / "theirs" / f"{name}-{word}"
                # Before any forward pass: one may rearrange the weights.
                auto.from_pretrained(recipe.folder / name, quantization_config=settings, dtype=torch.float32).save_pretrained(folder)
                tokenizer.save_pretrained(folder)
        recipe.run()
        rows, scores = rows_of(recipe), recipe.metrics("loss")["models"]
        hidden = ours(report, recipe, recipe.export("headed", "headed"), rows)["rows"]
        for name in BASES:
            for word in SCHEMES:
                what = f"{name} in {word} by transformers"
                folder = recipe.folder / "theirs" / f"{name}-{word}"
                tensors = tensors_of(folder)
                plain = copy.deepcopy(models[name])
                packed = unpacked(plain, tensors)
                outside = "cls.predictions.transform.dense.weight" if name == "headed" else "pooler.dense.weight"
                report.check(len(packed) == 13 and outside in packed, f"{what}: {len(packed)} weights are packed, {outside} among them")
                kept = tensors_of(recipe.export(f"{name}_{word}", f"{name}-{word}"))
                right = kept.keys() == tensors.keys() and all(same(kept[key], tensors[key]) for key in kept)
                report.check(right, f"{what}: exported again, tensor by tensor")
                if name == "alone":
                    compare_states(report, what, recipe, folder, plain, rows)
                    continue
                report.near(scores[f"headed_{word}"]["loss"], hidden_loss(plain, rows, hidden), 1e-5, f"{what}: loss")
                base = weights(plain)
                adapted = PeftModel.from_pretrained(plain, recipe.export(f"tuned_{word}", f"tuned-{word}", "peft")).eval()
                loss = scores[f"tuned_{word}"]["loss"]
                report.near(loss, hidden_loss(adapted, rows, hidden), 1e-5, f"{what}: loss with an adapter that was trained on it")
                report.near(loss, scores[f"merged_{word}"]["loss"], 1e-5, f"{what}: loss with it merged")
                merged = load_file(recipe.export(f"merged_{word}", f"merged-{word}") / "model.safetensors")
                compare_merged(report, f"{what}, merged", merged, weights(adapted.merge_and_unload()), base)


def weights(model):
    """The parameters of a model, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def merged_there(model, folder):
    """The weights of a copy of `model` with the adapter in a folder merged by PEFT."""
    return weights(PeftModel.from_pretrained(copy.deepcopy(model), folder).merge_and_unload())


def merge(report):
    """Adapters that we trained on an encoder and merged, against PEFT's `merge_and_unload` of the same."""
    stages = {"headed": {"kind": "load_model", "source": "headed", "dtype": "f32"}, "texts": TEXT_STAGE}
    for name, adapter in OWN.items():
        stages[f"{name}_fresh"] = {**adapter, "model": "headed"}
        stages[name] = {**TRAINING, "model": f"{name}_fresh", "learning_rate": 2e-2, "max_steps": 6}
        stages[f"{name}_merged"] = {"kind": "merge", "model": name}
    stages["loss"] = {"kind": "masked_lm_loss", "models": {name: name for name in [*OWN, *(f"{name}_merged" for name in OWN)]}, "data": "texts"}
    with Recipe("encoders-merge", stages, FILES) as recipe:
        model = save(recipe)["headed"]
        recipe.run()
        scores, base = recipe.metrics("loss")["models"], weights(model)
        for name in OWN:
            adapter = recipe.export(name, name, "peft")
            merged = load_file(recipe.export(f"{name}_merged", f"{name}_merged") / "model.safetensors")
            theirs = merged_there(model, adapter)
            compare_merged(report, f"{name} on an encoder", merged, theirs, base)
            moved = [key for key in base if key.endswith("bias") and not torch.equal(theirs[key], base[key])]
            report.check(bool(moved) == (name == "ia3"), f"{name} on an encoder: {len(moved)} biases are merged")
            report.near(scores[f"{name}_merged"]["loss"], scores[name]["loss"], 1e-5, f"{name} on an encoder: loss after merging")


def made_there(model, settings):
    """A copy of `model` with an adapter that PEFT made, of numbers that change something."""
    torch.manual_seed(5)
    adapted = get_peft_model(copy.deepcopy(model), copy.deepcopy(settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "ia3_l" in name:
                parameter.uniform_(0.5, 1.5)
            elif "lora_" in name and "magnitude" not in name:
                parameter.normal_(0, 0.1)
    return adapted.eval()


def adapters_from_theirs(report):
    """Adapters that PEFT made, on the class of the encoder alone and on that for masked tokens."""
    stages = {name: {"kind": "load_model", "source": name, "dtype": "f32"} for name in BASES}
    stages["texts"] = TEXT_STAGE
    names = ["headed"]
    for base, kinds in [("alone", ALONE), ("headed", HEADED)]:
        for name in kinds:
            stages[f"{base}_{name}"] = {"kind": "load_adapter", "model": base, "source": f"theirs/{base}-{name}"}
            stages[f"{base}_{name}_merged"] = {"kind": "merge", "model": f"{base}_{name}"}
    for name in HEADED:
        stages[f"headed_{name}_tuned"] = {**TRAINING, "model": f"headed_{name}", "learning_rate": 1e-2, "max_steps": 3}
        names += [f"headed_{name}", f"headed_{name}_tuned"]
    stages["fresh"] = {"kind": "lora", "model": "alone", "r": 2, "targets": "dense"}
    stages["loss"] = {"kind": "masked_lm_loss", "models": {name: name for name in names}, "data": "texts"}
    with Recipe("encoders-adapters", stages, FILES) as recipe:
        models = save(recipe)
        theirs = {}
        for base, kinds in [("alone", ALONE), ("headed", HEADED)]:
            for name, settings in kinds.items():
                theirs[base, name] = made_there(models[base], settings)
                theirs[base, name].save_pretrained(recipe.folder / "theirs" / f"{base}-{name}", save_embedding_layers=False)
        recipe.run()
        rows, scores = rows_of(recipe), recipe.metrics("loss")["models"]
        hidden = ours(report, recipe, recipe.export("headed", "headed"), rows)["rows"]
        for (base, name), adapted in theirs.items():
            what = f"{name} by PEFT, {base}"
            own = recipe.folder / "theirs" / f"{base}-{name}"
            kept = recipe.export(f"{base}_{name}", f"{base}-{name}-kept", "peft")
            for file in ["adapter_model.safetensors", "adapter_config.json"]:
                report.check((kept / file).read_bytes() == (own / file).read_bytes(), f"{what}: {file} is PEFT's, byte for byte")
            folder = recipe.export(f"{base}_{name}_merged", f"{base}-{name}-merged")
            merged = load_file(folder / "model.safetensors")
            compare_merged(report, what, merged, merged_there(models[base], own), weights(models[base]))
            if base == "alone":
                compare_states(report, what, recipe, folder, adapted.base_model.model, rows)
                continue
            loss = hidden_loss(adapted, rows, hidden)
            report.check(abs(loss / scores["headed"]["loss"] - 1) > 1e-3, f"{what}: it changes the loss to {loss:.4f}")
            report.near(scores[f"headed_{name}"]["loss"], loss, 1e-5, f"{what}: loss of PEFT's adapter here")
            tuned = recipe.export(f"headed_{name}_tuned", f"headed-{name}-tuned", "peft")
            again = opened_there(report, what, models[base], tuned)
            report.near(scores[f"headed_{name}_tuned"]["loss"], hidden_loss(again, rows, hidden), 1e-5, f"{what}: trained further, opened there again")
        # Ours on an encoder alone has the names of its class.
        fresh = recipe.export("fresh", "fresh", "peft")
        opened_there(report, "ours on an encoder alone", models["alone"], fresh)
        settings = json.loads((fresh / "adapter_config.json").read_text())
        report.check(all("bert." not in name for name in settings["target_modules"]), "ours on an encoder alone: names of its targets")


def opened_there(report, what, model, folder):
    """A copy of `model` with the adapter in a folder, of which PEFT misses nothing and finds all numbers."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
    missed = [str(warning.message) for warning in said if "missing adapter keys" in str(warning.message)]
    report.equal(missed, [], f"{what}: PEFT misses no tensor")
    stored = load_file(folder / "adapter_model.safetensors")
    found = {name.replace(".default", ""): parameter for name, parameter in adapted.named_parameters()}
    # Lengths have a name more in memory than in files.
    found = {name.replace("magnitude_vector.weight", "magnitude_vector"): parameter for name, parameter in found.items()}
    differ = [name for name, tensor in stored.items() if name not in found or not torch.equal(found[name].detach(), tensor)]
    report.equal(differ, [], f"{what}: PEFT has every one of {len(stored)} tensors")
    return adapted


def main():
    """Everything, both ways."""
    torch.set_num_threads(2)
    report = Report("model_encoders")
    ours_in_theirs(report)
    theirs_in_ours(report)
    merge(report)
    adapters_from_theirs(report)
    report.done()


if __name__ == "__main__":
    main()
