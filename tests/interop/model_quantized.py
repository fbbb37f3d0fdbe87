"""Quantized models both ways. What `quantize` makes of small Llamas is what bitsandbytes makes of the same weights, bit for bit, and
transformers opens it; a folder that transformers and bitsandbytes wrote is loaded here; both give the loss of the numbers that they
stand for.
"""

import json
import math
import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # bitsandbytes compiles small functions, for which a compiler would be needed

import bitsandbytes as bnb  # noqa: E402
import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from support.levain import CHECKOUT, Recipe, Report  # noqa: E402
from support.reference import held_out_loss  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM  # noqa: E402

TOKENIZER = CHECKOUT / "tests" / "golden" / "data" / "formats" / "tiny"
NESTED_BLOCK = 256
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A levain is a starter dough: you feed it, keep it, and give a piece away.",
    "def f(x):\n    return x ** 2\n",
    "One, two, three.",
]
FILES = {"texts.jsonl": [{"text": text} for text in TEXTS]}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
CLOSE = {"f32": 1e-5, "bf16": 1.6e-2}
"""How far losses may be apart, relative to the larger one."""
MODELS = {
    # name: (changes of the shape, dtype of the recipe, options of `quantize`)
    # MLPs of 320 scales: two scales of scales, the second of a short block.
    "nested": ({"tie_word_embeddings": False}, "bf16", {"double_quant": True}),
    "plain": ({"tie_word_embeddings": True}, "f32", {"double_quant": False, "block": 32}),
    # Rows of 96 and 160 values: blocks cross from one row to the next.
    "uneven": ({"tie_word_embeddings": True, "hidden_size": 96, "intermediate_size": 160}, "f32", {"double_quant": True}),
    "skipping": ({"tie_word_embeddings": False}, "f32", {"skip": ["down_proj", "1.mlp.up_proj"]}),
}
SKIPPED = ("down_proj.weight", "layers.1.mlp.up_proj.weight")


def by_torch(operator, *arguments):
    """bitsandbytes' operator in plain torch, whatever its library has for this processor.

    That rounds to the nearest eight-bit code, which the library for CPUs does not always do, and unpacks weights whose rows are not
    whole blocks, which that library does wrongly.
    """
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
    return getattr(torch.ops.bitsandbytes, operator).default.redispatch(keys, *arguments)


def save(folder, changes, dtype, tokenizer):
    """A random model, larger than usual at the start so that it has opinions."""
    torch.manual_seed(len(changes) + changes.get("hidden_size", 0))
    settings = dict(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=320, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.15, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).to(DTYPES[dtype])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Loaded anew: `to` has rounded the frequencies of the positions, which are no weights, too.
    return LlamaForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval()


def linears(model):
    """The names of the weights that can be quantized."""
    return [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"]


def quantized(weight, block, nested):
    """What bitsandbytes stores of a weight: tensors by what follows the weight's name.

    Scales are multiplied by reciprocals and their mean is that of f64, rounded, as on no backend but near all of them.
    """
    weight = weight.detach()
    assert weight.numel() % block == 0
    codes, absmax = by_torch("quantize_4bit", weight, block, "nf4", torch.uint8)
    settings = dict(shape=weight.shape, code=bnb.functional.get_4bit_type("nf4", "cpu"), blocksize=block, quant_type="nf4", dtype=weight.dtype)
    if nested:
        table = bnb.functional.create_dynamic_map(signed=True)
        offset = absmax.double().mean().float()
        # Zeros to whole blocks: the default code would divide in a short one.
        whole = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % NESTED_BLOCK))
        bytes_, scales = by_torch("quantize_blockwise", whole, table, NESTED_BLOCK)
        inner = bnb.functional.QuantState(absmax=scales, code=table, blocksize=NESTED_BLOCK, dtype=torch.float32)
        state = bnb.functional.QuantState(absmax=bytes_[: len(absmax)], offset=offset, state2=inner, **settings)
    else:
        state = bnb.functional.QuantState(absmax=absmax, **settings)
    return {"": codes, **{f".{key}": value for key, value in state.as_dict(packed=True).items()}}


def state_of(parts):
    """bitsandbytes' state of stored tensors."""
    return bnb.functional.QuantState.from_dict({key.removeprefix("."): value for key, value in parts.items() if key}, torch.device("cpu"))


def dequantized(codes, state):
    """The numbers that a quantized weight stands for, in its type."""
    scales = state.absmax
    if state.nested:
        inner = state.state2
        scales = by_torch("dequantize_blockwise", scales, inner.absmax, inner.code, inner.blocksize, torch.float32) + state.offset
    return by_torch("dequantize_4bit", codes, scales, state.blocksize, "nf4", state.shape, state.dtype)


def tensors_of(folder):
    """All tensors of a folder by name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.update({name: file.get_tensor(name) for name in file.keys()})
    return found


def parts_of(tensors, name):
    """The tensors that belong to a weight, by what follows its name."""
    return {key.removeprefix(name): value for key, value in tensors.items() if key == name or key.startswith(f"{name}.")}


def unpacked(model, tensors):
    """`model` with the numbers that the tensors of a folder stand for; how many weights of it were quantized."""
    count = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parts = parts_of(tensors, name)
            if len(parts) > 1:
                count += 1
                parameter.copy_(dequantized(parts[""], state_of(parts)))
            else:
                parameter.copy_(parts[""])
    return count


def settings_of(double_quant, dtype):
    """What transformers is told."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant, bnb_4bit_compute_dtype=DTYPES[dtype]
    )


def compare_weights(report, name, model, tensors, block, nested, skipped):
    """Every tensor that we wrote against bitsandbytes' of the same weight; the names of those that were quantized."""
    packed = [weight for weight in linears(model) if not weight.endswith(skipped)]
    report.check(0 < len(packed) <= len(linears(model)), f"{name}: {len(packed)} of {len(linears(model))} weights are quantized")
    differ, known, far = [], set(), 0
    for weight, parameter in model.named_parameters():
        ours = parts_of(tensors, weight)
        theirs = quantized(parameter, block, nested) if weight in packed else {"": parameter.detach()}
        known |= {weight + key for key in theirs}
        for key in ours.keys() | theirs.keys():
            a, b = ours.get(key), theirs.get(key)
            same = a is not None and b is not None and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
            differ += [] if same else [weight + key]
        if weight in packed and nested and not differ:
            # The mean in f32, and the library's own rounding of scales.
            codes, state = bnb.functional.quantize_4bit(parameter.detach(), blocksize=block, compress_statistics=True, quant_type="nf4")
            mean = state_of(ours).offset.item()
            near = math.isclose(mean, state.offset.item(), rel_tol=2**-21)
            differ += [] if near and torch.equal(codes, ours[""]) else [f"{weight}: mean {mean} against {state.offset.item()}"]
            far += int((state.absmax != ours[".absmax"]).sum())
    report.equal(differ, [], f"{name}: every tensor is bitsandbytes' bit for bit ({far} scales are others in its library)")
    report.equal(sorted(tensors.keys() - known), [], f"{name}: no others are there")
    return packed


def compare_settings(report, name, folder, double_quant, dtype, skipping):
    """`quantization_config` against that of transformers."""
    ours = json.loads((folder / "config.json").read_text())["quantization_config"]
    theirs = json.loads(settings_of(double_quant, dtype).to_json_string(use_diff=False))
    # Without any transformers skips the head.
    names = ours.pop("llm_int8_skip_modules") or ["lm_head"]
    theirs.pop("llm_int8_skip_modules")
    report.equal(ours, theirs, f"{name}: quantization_config")
    others = [module for module in names if module != "lm_head"]
    report.check("lm_head" in names and bool(others) == skipping, f"{name}: layers that are skipped: {', '.join(names)}")


def in_transformers(report, name, folder, tensors, packed, block):
    """The folder opened by transformers: every layer is of its kind and stands for the same numbers."""
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    strangers = any(found[key] for key in ["missing_keys", "unexpected_keys", "mismatched_keys"])
    report.check(not strangers, f"{name}: every tensor of the export has its place in transformers")
    modules = {f"{path}.weight": module for path, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    report.equal(sorted(modules), sorted(packed), f"{name}: layers that transformers takes for quantized")
    differ = []
    for weight, module in modules.items():
        parts = parts_of(tensors, weight)
        wanted = dequantized(parts[""], state_of(parts))
        same = torch.equal(dequantized(module.weight.data, module.weight.quant_state), wanted)
        if wanted.shape[1] % block == 0:
            same = same and torch.equal(bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state), wanted)
        differ += [] if same else [weight]
    report.equal(differ, [], f"{name}: numbers that transformers and bitsandbytes unpack")
    return model.eval()


def ours_in_theirs(report, name, tokenizer):
    """A model that we quantized."""
    changes, dtype, options = MODELS[name]
    stages = {
        "base": {"kind": "load_model", "source": "base", "dtype": dtype},
        "small": {"kind": "quantize", "model": "base", "scheme": "nf4", **options},
        "texts": {"kind": "load_dataset", "source": "texts.jsonl", "format": "text"},
        "scores": {"kind": "evaluate", "models": {"base": "base", "small": "small"}, "data": "texts"},
    }
    block, nested = options.get("block", 64), options.get("double_quant", True)
    with Recipe(f"quantized-{name}", stages, FILES) as recipe:
        model = save(recipe.folder / "base", changes, dtype, tokenizer)
        recipe.run()
        folder = recipe.export("small", name)
        tensors = tensors_of(folder)
        skipping = "skip" in options
        packed = compare_weights(report, name, model, tensors, block, nested, SKIPPED if skipping else ())
        compare_settings(report, name, folder, nested, dtype, skipping)
        theirs = in_transformers(report, name, folder, tensors, packed, block)
        report.equal(AutoTokenizer.from_pretrained(folder).get_vocab(), tokenizer.get_vocab(), f"{name}: the exported tokenizer")

        tokens, scores = recipe.tokens("scores"), recipe.metrics("scores")["models"]
        before, _ = held_out_loss(model, tokens)
        report.near(scores["base"]["loss"], before, CLOSE[dtype], f"{name}: loss before")
        report.equal(unpacked(model, tensors), len(packed), f"{name}: weights that were unpacked")
        loss, accuracy = held_out_loss(model, tokens)
        report.check(abs(loss - before) > 1e-4 * before, f"{name}: quantization changes the loss from {before:.6f} to {loss:.6f}")
        report.near(scores["small"]["loss"], loss, CLOSE[dtype], f"{name}: loss of the quantized model")
        if dtype == "f32":
            report.near(scores["small"]["token_accuracy"], accuracy, 1e-9, f"{name}: accuracy of the quantized model")
        if name == "nested":
            # The library's own products, which are in bf16 at best; they rearrange the weights, so nothing can come after this.
            report.near(scores["small"]["loss"], held_out_loss(theirs, tokens)[0], 5e-2, f"{name}: loss by bitsandbytes' products")

        # And back again, into a cache that never saw it.
        stages = {
            "again": {"kind": "load_model", "source": str(folder), "dtype": dtype},
            "texts": stages["texts"],
            "scores": {"kind": "evaluate", "models": {"again": "again"}, "data": "texts"},
        }
        with Recipe(f"quantized-again-{name}", stages, FILES) as other:
            other.run()
            again = other.metrics("scores")["models"]["again"]
            report.near(again["loss"], scores["small"]["loss"], 1e-9, f"{name}: exported and loaded again")
            kept = tensors_of(other.export("again", "again"))
            same = kept.keys() == tensors.keys() and all(torch.equal(kept[key], tensors[key]) for key in kept)
            report.check(same, f"{name}: exported again, tensor by tensor")


def theirs_in_ours(report, name, tokenizer):
    """The same model, quantized and saved by transformers and bitsandbytes, whose library rounds scales in its own way."""
    changes, dtype, options = MODELS[name]
    nested = options.get("double_quant", True)
    stages = {
        "theirs": {"kind": "load_model", "source": "theirs", "dtype": dtype},
        # Weights that are rounded to bf16 where they are unpacked, and all else in f32.
        "wide": {"kind": "load_model", "source": "theirs", "dtype": "f32"},
        "texts": {"kind": "load_dataset", "source": "texts.jsonl", "format": "text"},
        "scores": {"kind": "evaluate", "models": {"theirs": "theirs", "wide": "wide"}, "data": "texts"},
    }
    with Recipe(f"quantized-theirs-{name}", stages, FILES) as recipe:
        model = save(recipe.folder / "base", changes, dtype, tokenizer)
        theirs = AutoModelForCausalLM.from_pretrained(
            recipe.folder / "base", quantization_config=settings_of(nested, dtype), dtype=DTYPES[dtype]
        )
        # Before any forward pass: one may rearrange the weights.
        theirs.save_pretrained(recipe.folder / "theirs")
        tokenizer.save_pretrained(recipe.folder / "theirs")
        tensors = tensors_of(recipe.folder / "theirs")
        recipe.run()
        tokens, scores = recipe.tokens("scores"), recipe.metrics("scores")["models"]
        before, _ = held_out_loss(model, tokens)
        report.equal(unpacked(model, tensors), len(linears(model)), f"{name} by transformers: weights that were unpacked")
        loss, _ = held_out_loss(model, tokens)
        report.check(abs(loss - before) > 1e-4 * before, f"{name} by transformers: quantization changes the loss from {before:.6f} to {loss:.6f}")
        report.near(scores["theirs"]["loss"], loss, CLOSE[dtype], f"{name} by transformers: loss")
        loss, accuracy = held_out_loss(model.float(), tokens)
        report.near(scores["wide"]["loss"], loss, CLOSE["f32"], f"{name} by transformers: loss in f32")
        report.near(scores["wide"]["token_accuracy"], accuracy, 1e-9, f"{name} by transformers: accuracy in f32")
        kept = tensors_of(recipe.export("theirs", "theirs"))
        same = kept.keys() == tensors.keys() and all(torch.equal(kept[key], tensors[key]) for key in kept)
        report.check(same, f"{name} by transformers: exported again, tensor by tensor")


def main():
    """All models, both ways."""
    torch.set_num_threads(2)
    report = Report("model_quantized")
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    for name in MODELS:
        ours_in_theirs(report, name, tokenizer)
        if "skip" not in MODELS[name][2]:
            theirs_in_ours(report, name, tokenizer)
    report.done()


if __name__ == "__main__":
    main()
