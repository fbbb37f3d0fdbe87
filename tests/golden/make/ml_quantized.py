"""Golden values of quantization: NF4 with and without double quantization, a linear with an adapter on top, AdamW with its moments
in eight bits, and a whole model that transformers quantized and saved.

Usage: OMP_NUM_THREADS=1 python tests/golden/make/ml_quantized.py
Pinned, beside what ml_common.py pins: bitsandbytes 0.50.2, accelerate 1.15.0.

bitsandbytes chooses its code by the device. Its native library for CPUs is kept out here, for two reasons: it rounds eight-bit codes
by a table of 65536 entries, so that some are not the nearest; and it unpacks a four-bit weight wrongly if the length of its rows is
not a multiple of the block. Without it everything is done by bitsandbytes/backends/default/ops.py (plain torch, rounding at the
midpoints between codes, blocks along the flat weight: what its CUDA code does too), but the updates of AdamW, which are those of
bitsandbytes/backends/cpu/ops.py (plain torch as well, on the default code's rounding).

The default code divides by the scale in a last block that is short where it multiplies by the reciprocal in all others (CUDA
multiplies everywhere), and takes the mean of the scales in f32. The inputs are such that neither matters; that is asserted.
"""

import ctypes
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # nothing is compiled: torch's own operators one by one

import torch  # noqa: E402


def without_native_library():
    """bitsandbytes as it is where its native library can't be loaded."""
    load = ctypes.cdll.LoadLibrary

    def refuse(path):
        if "libbitsandbytes" in str(path):
            raise OSError(f"{path} is kept out")
        return load(path)

    ctypes.cdll.LoadLibrary = refuse
    try:
        import bitsandbytes
    finally:
        ctypes.cdll.LoadLibrary = load
    assert type(bitsandbytes.cextension.lib).__name__ == "ErrorHandlerMockBNBNativeLibrary"
    for operator in ["quantize_blockwise", "dequantize_blockwise", "quantize_4bit", "dequantize_4bit", "gemm_4bit"]:
        assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"bitsandbytes::{operator}", "CPU"), operator
    return bitsandbytes


bnb = without_native_library()  # before PEFT imports it

import ml_common  # noqa: E402
from ml_common import DATA, LIMIT, agree, certificate, llama, numbers, tokens, write, write_parts  # noqa: E402
from peft import LoraConfig, inject_adapter_in_model  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from transformers import BitsAndBytesConfig, LlamaForCausalLM  # noqa: E402

ml_common.PINNED.update({"bitsandbytes": "0.50.2", "accelerate": "1.15.0"})

DYNAMIC = bnb.functional.create_dynamic_map(signed=True)
UNSIGNED = bnb.functional.create_dynamic_map(signed=False)
NF4 = bnb.functional.get_4bit_type("nf4", device="cpu")
BORDERS = (NF4[:-1] + NF4[1:]) / 2
NESTED_BLOCK = 256


def sha256(tensor):
    """Of the little-endian bytes."""
    return hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())


# --- Maps ---------------------------------------------------------------------------------------------------------------------------


def maps():
    """The tables of four and eight bits, and their digests in the metadata."""
    tables = {"nf4": NF4, "dynamic": DYNAMIC, "unsigned_dynamic": UNSIGNED}
    digests = {f"{name}_sha256": sha256(table).hexdigest() for name, table in tables.items()}
    assert digests["dynamic_sha256"] == "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c"
    assert digests["unsigned_dynamic_sha256"] == "305f002cc11278fb769d13b25b9fd0c7c83c8402c40a878fe086f4039fde6398"
    path = DATA / "quantized_maps.safetensors"
    save_file(tables, path, metadata={**certificate(), **digests})
    path.chmod(0o644)
    print(f"{path.name}: {len(tables)} tensors, {path.stat().st_size} bytes")


# --- NF4 ----------------------------------------------------------------------------------------------------------------------------


DRAWS = {"96x128": 0, "64x192": 0, "3x37": 0, "zeros": 2, "72x128": 0}
"""Which numbers: such that the means and last blocks do not matter."""


def uniform(name, shape):
    """Numbers by formula."""
    return numbers(f"nf4.{name}.{DRAWS[name]}", shape, 0.3)


def zeros():
    """A block of zeros, positive and negative, between two others."""
    values = uniform("zeros", (3, 64))
    values[1] = 0.0
    values[1, ::3] = -0.0
    return values


def borders():
    """Values on the borders between two codes and one step to either side, in a block of scale 1 and in one of scale 2."""
    up, down = torch.nextafter(BORDERS, torch.tensor(2.0)), torch.nextafter(BORDERS, torch.tensor(-2.0))
    row = torch.cat([torch.tensor([1.0, -1.0, 0.0]), BORDERS, up, down, NF4])
    return torch.stack([row, -2.0 * row]).double()


CASES = {
    "96x128": (uniform("96x128", (96, 128)), 64),
    # A block is longer than half a row and shorter than a row: blocks cross from one row to the next.
    "64x192": (uniform("64x192", (64, 192)), 128),
    # 111 values: the last block is short, and the last byte has one code.
    "3x37": (uniform("3x37", (3, 37)), 64),
    "zeros": (zeros(), 64),
    "borders": (borders(), 64),
    # 288 scales: more than one scale of scales, the second of a short block.
    "72x128": (uniform("72x128", (72, 128)) * (1 + torch.arange(72).unsqueeze(1) / 24), 32),
}
"""Values in f64, and the size of a block."""
SMALL = 200
"""Of so many values at most, dequantized ones are stored; of more the digests of their bytes."""
STORED = {"96x128.f32.nested.values", "96x128.bf16.nested.values", "64x192.bf16.values"}
"""Of larger ones, what is stored for all that."""
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
SPARED = {("72x128", "bf16"), ("borders", "bf16")}


def padded(values, block):
    """Zeros to whole blocks."""
    return F.pad(values.reshape(-1), (0, -values.numel() % block))


def assert_plain(values, block, codes, absmax):
    """Reciprocals in all blocks give the same codes."""
    again, scales = torch.ops.bitsandbytes.quantize_4bit(padded(values, block), block, "nf4", torch.uint8)
    assert torch.equal(again[: len(codes)], codes) and torch.equal(scales, absmax)


def assert_nested(absmax, state):
    """As above, and the mean of f64 is that of f32."""
    assert state.offset.item() == absmax.double().mean().float().item(), "the mean of the scales in f32 and in f64"
    again, scales = torch.ops.bitsandbytes.quantize_blockwise(padded(absmax - state.offset, NESTED_BLOCK), DYNAMIC, NESTED_BLOCK)
    assert torch.equal(again[: len(absmax)], state.absmax) and torch.equal(scales, state.state2.absmax)
    assert state.state2.blocksize == NESTED_BLOCK and torch.equal(state.state2.code, DYNAMIC)


def quantized(values, block, nested):
    """Codes, state, the scales in f32, and the values in the type of the state and in f32 before that rounding."""
    codes, state = bnb.functional.quantize_4bit(values, blocksize=block, compress_statistics=nested, quant_type="nf4")
    assert torch.equal(state.code, NF4) and state.dtype == values.dtype
    scales = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset if nested else state.absmax
    single = torch.ops.bitsandbytes.dequantize_4bit(codes, scales, block, "nf4", values.shape, torch.float32)
    back = bnb.functional.dequantize_4bit(codes, state)
    assert torch.equal(back, single.to(values.dtype))
    return codes, state, scales, back, single


def nf4():
    """All cases in both types; the input in bf16 is that in f32, rounded."""
    golden = {}

    def put(key, tensor):
        if tensor.numel() <= SMALL or key in STORED:
            golden[key] = tensor
        else:
            golden[f"{key}.sha256"] = torch.frombuffer(bytearray(sha256(tensor).digest()), dtype=torch.uint8)

    for name, (exact, block) in CASES.items():
        golden[f"{name}.input"] = exact.float()
        for word, dtype in DTYPES.items():
            if (name, word) in SPARED:
                continue
            values = golden[f"{name}.input"].to(dtype)
            for nested in [False, True]:
                key = f"{name}.{word}" + (".nested" if nested else "")
                codes, state, scales, back, single = quantized(values, block, nested)
                if nested:
                    assert torch.equal(codes, golden[f"{name}.{word}.codes"])
                    assert_nested(golden[f"{name}.{word}.absmax"], state)
                    golden[f"{key}.nested_absmax"] = state.state2.absmax
                    golden[f"{key}.nested_offset"] = state.offset
                    golden[f"{key}.scales"] = scales
                else:
                    assert_plain(values, block, codes, state.absmax)
                    golden[f"{key}.codes"] = codes
                golden[f"{key}.absmax"] = state.absmax
                put(f"{key}.values", back)
                if dtype != torch.float32:
                    put(f"{key}.values_f32", single)
    assert golden["zeros.f32.absmax"][1] == 0.0 and (golden["zeros.f32.codes"].reshape(3, 32)[1] == 0x77).all()
    assert golden["72x128.f32.nested.nested_absmax"].shape == (2,)
    assert golden["3x37.f32.codes"].shape == (56, 1)
    assert golden["borders.f32.codes"].reshape(-1)[1] == 0x70, "0 and the lowest border, which is the lower code's"
    assert STORED <= golden.keys()
    write_parts("quantized_nf4", golden)


# --- A linear and an adapter --------------------------------------------------------------------------------------------------------

RANK, ALPHA = 4, 8


def adapted(base, a, b):
    """PEFT's layer over `base`."""
    model = torch.nn.Sequential()
    model.add_module("proj", base)
    model.is_loaded_in_4bit = isinstance(base, bnb.nn.Linear4bit)
    model = inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["proj"]), model)
    layer = model.proj
    with torch.no_grad():
        layer.lora_A.default.weight.data = a.clone()
        layer.lora_B.default.weight.data = b.clone()
    return layer.train()


def run(layer, x, way):
    """The output, and the gradients of its sum weighted by `way`."""
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * way).sum().backward()
    return {
        "output": y.detach(), "gradient.x": x.grad,
        "gradient.a": layer.lora_A.default.weight.grad, "gradient.b": layer.lora_B.default.weight.grad,
    }  # fmt: skip


def four_bits(values):
    """bitsandbytes' linear that computes in f32."""
    linear = bnb.nn.Linear4bit(128, 96, bias=False, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4")
    linear.weight = bnb.nn.Params4bit(values, requires_grad=False, compress_statistics=True, quant_type="nf4", module=linear)
    return linear.to("cpu")


def linear():
    """PEFT in f64 over the weight of `96x128.bf16.nested.values`, and PEFT in f32 over bitsandbytes' own linear.

    Where bitsandbytes computes in another type than that of the weight, its forward pass unpacks the weight to the type that it
    computes in, and its backward pass to that of the weight: of a weight in bf16 the output here is one of values that were not
    rounded to bf16, the gradients are of values that were.
    """
    inputs = {
        "x": numbers("linear.x", (5, 128), 1.0).float(), "way": numbers("linear.way", (5, 96), 1.0).float(),
        "a": numbers("linear.a", (RANK, 128), 0.2).float(), "b": numbers("linear.b", (96, RANK), 0.2).float(),
    }  # fmt: skip
    values = CASES["96x128"][0].float().bfloat16()
    _, _, _, back, single = quantized(values, 64, True)

    def over(weight):
        base = torch.nn.Linear(128, 96, bias=False, dtype=torch.float64)
        base.weight.data = weight.double()
        return run(adapted(base, inputs["a"].double(), inputs["b"].double()), inputs["x"].double(), inputs["way"].double())

    golden, unrounded = over(back), over(single)
    # By formula, without PEFT.
    x, way, a, b = (inputs[key].double() for key in ["x", "way", "a", "b"])
    scale = ALPHA / RANK
    agree(golden["output"], x @ back.double().T + scale * (x @ a.T) @ b.T, 1e-14, "the output by formula")
    agree(golden["gradient.x"], way @ back.double() + scale * (way @ b) @ a, 1e-14, "the gradient by formula")

    layer = adapted(four_bits(values), inputs["a"], inputs["b"])
    assert type(layer).__module__ == "peft.tuners.lora.bnb", type(layer)
    theirs = run(layer, inputs["x"], inputs["way"])
    agree(theirs["output"], unrounded["output"], 1e-6, "the output of Linear4bit")
    agree(theirs["output"], golden["output"], 2**-9, "the output of Linear4bit and that of values in bf16")
    for key in ["gradient.x", "gradient.a", "gradient.b"]:
        agree(theirs[key], golden[key], 1e-6, f"{key} of Linear4bit")
    write("quantized_linear", {
        **inputs, **golden, **{f"bitsandbytes.{key}": value for key, value in theirs.items()},
    })  # fmt: skip


# --- AdamW in eight bits ------------------------------------------------------------------------------------------------------------

STEPS, RATE, DECAY, BETAS, EPS = 10, 0.01, 0.1, (0.9, 0.999), 1e-8
SHAPES = {"large": (64, 128), "small": (50,)}
FACTORS = [1.0, 0.1, 0.01, 0.0, 0.0, 0.0, 0.3, 1.0]
"""What row i of a gradient is multiplied by: FACTORS[i % 8]. Two rows are a block, so that every fourth block is zero."""
DRAW = 3
"""Which gradients: such that no moment comes so close to a midpoint that the order of operations could change its code."""
NEAR = 2.0**-22
SHOWN = 4
"""Rows of the large parameter that are stored after every step; blocks don't depend on each other."""


def gradient(name, step, draw):
    """By formula, f64 before it is rounded to f32."""
    values = numbers(f"adam {draw} {step} {name}", SHAPES[name], 0.1)
    if name == "large":
        values = values * torch.tensor(FACTORS, dtype=torch.float64).repeat(8).unsqueeze(1)
    return values.float()


def unambiguous(codes, table, exact):
    """Whether exact moments have these codes, each by more than NEAR from a midpoint."""
    blocks = exact.reshape(-1, NESTED_BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)
    scaled = (blocks / largest.clamp(min=1e-38)).reshape(-1)
    middle = (table.double()[:-1] + table.double()[1:]) / 2
    found = torch.bucketize(scaled, middle)
    gaps = torch.stack([(scaled - middle[(found + side).clamp(0, 254)]).abs() for side in (-1, 0)])
    return torch.equal(found, codes.reshape(-1).long()) and bool((gaps > NEAR * scaled.abs()).all())


def train(draw):
    """Ten steps of AdamW8bit: the parameters after each, the optimizer, the same in f64, and whether all codes are beyond doubt.

    A tensor of less than 4096 values keeps its moments in f32. Of others each step unpacks the moments, moves them, decays and moves
    the parameter by the moments as they are then, in f32, and packs them. (CUDA decays last, and gives a first moment the code
    next to zero where zero would lose its sign.)
    """
    parameters = {name: torch.nn.Parameter(numbers(f"adam {name}", shape, 1.0).float()) for name, shape in SHAPES.items()}
    optimizer = bnb.optim.AdamW8bit(parameters.values(), lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY)
    # torch's own, from which eight bits stray.
    plain = {name: torch.nn.Parameter(parameter.detach().double()) for name, parameter in parameters.items()}
    reference = torch.optim.AdamW(plain.values(), lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY)
    after, clear = {name: [] for name in SHAPES}, True
    moments = torch.zeros(2, *SHAPES["large"], dtype=torch.float64)
    for step in range(STEPS):
        for name, parameter in parameters.items():
            parameter.grad = gradient(name, step, draw)
            plain[name].grad = parameter.grad.double()
        optimizer.step()
        reference.step()
        for name, parameter in parameters.items():
            after[name].append(parameter.detach().clone())
        state = optimizer.state[parameters["large"]]
        slope = parameters["large"].grad.double()
        for moment, beta, power in zip(moments, BETAS, (1, 2)):
            moment.mul_(beta).add_((1 - beta) * slope**power)
        for index, table in [(1, DYNAMIC), (2, UNSIGNED)]:
            clear = clear and unambiguous(state[f"state{index}"], table, moments[index - 1])
            # The next step begins with what was stored.
            scales = state[f"absmax{index}"].double().unsqueeze(1)
            codes = state[f"state{index}"].reshape(-1, NESTED_BLOCK).long()
            moments[index - 1] = (table.double()[codes] * scales).reshape(SHAPES["large"])
    return parameters, optimizer, after, plain, clear


def adam():
    """Parameters after the steps and the state after the last."""
    parameters, optimizer, after, plain, clear = train(DRAW)
    assert clear, f"codes that are in doubt; take {next(draw for draw in range(1000) if train(draw)[-1])} for DRAW"
    agree(after["small"][-1], plain["small"], 1e-6, "32 bits for the small one")
    moved = (plain["large"] - numbers("adam large", SHAPES["large"], 1.0)).abs().max()
    strayed = (after["large"][-1] - plain["large"]).abs().max()
    assert 1e-4 * moved < strayed < 0.2 * moved, f"eight bits stray by {strayed:.2e} of {moved:.2e}"
    large, small = (optimizer.state[parameters[name]] for name in ["large", "small"])
    assert large["state1"].dtype == torch.uint8 and small["state1"].dtype == torch.float32
    zero = large["absmax1"] == 0
    assert zero[2::4].all() and zero.sum() == 8 and (large["state1"].reshape(-1, NESTED_BLOCK)[zero] == 127).all()
    write("quantized_adam", {
        "large.steps": torch.stack([values[:SHOWN] for values in after["large"]]), "large.after": after["large"][-1],
        "large.state1": large["state1"], "large.state2": large["state2"],
        "large.absmax1": large["absmax1"], "large.absmax2": large["absmax2"],
        "small.steps": torch.stack(after["small"]), "small.state1": small["state1"], "small.state2": small["state2"],
    })  # fmt: skip


# --- A model ------------------------------------------------------------------------------------------------------------------------

SHAPE = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "tie_word_embeddings": False}
ROWS = [tokens(f"quantized row {index}", length) for index, length in enumerate([13, 1, 7])]
FOLDER = DATA / "quantized"


def logits_of(model):
    """All rows one after the other, each on its own."""
    with torch.no_grad():
        return torch.cat([model(input_ids=row.unsqueeze(0)).logits[0] for row in ROWS])


def model():
    """The tiny model in bf16, quantized and saved by transformers; logits and loss of the numbers that it stands for, by f64.

    That is done before any forward pass: on processors with AVX512-BF16 one without gradients rearranges the weights for
    bitsandbytes' native library, and what is saved after that has other scales.
    """
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    plain = llama(torch.bfloat16, **SHAPE)
    with tempfile.TemporaryDirectory() as temporary:
        plain.save_pretrained(Path(temporary) / "plain")
        theirs = LlamaForCausalLM.from_pretrained(Path(temporary) / "plain", quantization_config=settings, dtype=torch.bfloat16)
        theirs.save_pretrained(Path(temporary) / "quantized")
        FOLDER.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(temporary) / "quantized" / "config.json", FOLDER)
        stored = load_file(Path(temporary) / "quantized" / "model.safetensors")
        # The same tensors and header as transformers wrote, with the certificate added.
        save_file(stored, FOLDER / "model.safetensors", metadata={"format": "pt", **certificate()})
        (FOLDER / "model.safetensors").chmod(0o644)
        size = (FOLDER / "model.safetensors").stat().st_size
        assert size <= LIMIT, size
    print(f"quantized/model.safetensors: {len(stored)} tensors, {size} bytes")

    exact, count = llama(torch.float64, **SHAPE), 0
    for name, parameter in exact.named_parameters():
        if f"{name}.absmax" in stored:
            blob = {key.removeprefix(f"{name}."): value for key, value in stored.items() if key.startswith(f"{name}.")}
            said = json.loads(bytes(blob["quant_state.bitsandbytes__nf4"].tolist()))
            assert said["dtype"] == "bfloat16" and said["shape"] == list(parameter.shape) and said["nested_blocksize"] == NESTED_BLOCK
            state = bnb.functional.QuantState.from_dict(blob, torch.device("cpu"))
            values = bnb.functional.dequantize_4bit(stored[name], state)
            again, ours, _, back, _ = quantized(plain.get_parameter(name).data, 64, True)
            assert torch.equal(again, stored[name]) and torch.equal(back, values) and ours.offset.item() == said["nested_offset"]
            count += 1
        else:
            values = stored[name]
            assert torch.equal(values, plain.get_parameter(name).data) and values.dtype == torch.bfloat16
        parameter.data = values.double()
    assert count == 14 and "lm_head.weight.absmax" not in stored
    logits = logits_of(exact)
    loss = sum(
        F.cross_entropy(values[:-1], row[1:], reduction="sum")
        for row, values in zip(ROWS, logits.split([len(row) for row in ROWS]))
        if len(row) > 1
    )
    single = llama(torch.float32, **SHAPE)
    single.load_state_dict({name: value.float() for name, value in exact.state_dict().items()})
    agree(logits_of(single), logits, 5e-6, "logits of transformers in f32")
    with torch.no_grad():
        again = LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.bfloat16).eval()
        agree(logits_of(again), logits, 0.05, "logits of the model that transformers loads, in bf16")
    lengths = torch.tensor([len(row) for row in ROWS])
    write("quantized_model", {"tokens": torch.cat(ROWS), "lengths": lengths, "logits": logits.float(), "loss": loss})


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    for golden in [maps, nf4, linear, adam, model]:
        golden()
