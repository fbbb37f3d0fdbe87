"""The peer of `nf4`: bitsandbytes' NF4 on a CPU, and torch's own layer in full precision. Takes a job as JSON, answers as JSON."""

import ctypes
import gc
import json
import sys
import time
from pathlib import Path

import bitsandbytes as bnb
import torch
from safetensors import safe_open
from safetensors.torch import save_file

BLOCK = 64


def write(job):
    """What both sides read: random numbers in bf16."""
    torch.manual_seed(job["seed"])
    out, inner, rows = job["shape"]
    numbers = {"weight": torch.randn(out, inner) * 0.02, "x": torch.randn(rows, inner), "gradient": torch.randn(rows, out)}
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in numbers.items()}, job["inputs"])
    return {}


def read(path, name):
    """A tensor in memory of its own, not in that of the file."""
    with safe_open(path, "pt") as file:
        return file.get_tensor(name).clone()


def timed(repeats, work):
    """What the last call made, and the seconds of all calls but the first, which warms up."""
    made, seconds = work(), []
    for _ in range(repeats):
        made = None
        begin = time.perf_counter()
        made = work()
        seconds.append(time.perf_counter() - begin)
    return made, seconds


def counted(name):
    """Bytes that the system counts for this process under a name of /proc/self/status, where there is one."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(name)]
    return found[0] if found else None


def forget():
    """Give freed memory back and let the system count its peak anew; what is resident now, and whether it does."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass
    before = counted("VmRSS:")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return before, False
    return before, True


def both_ways(layer, x):
    """y, and the gradient to x where that to y is ones, so that nothing but the layer is computed."""
    y = layer(x)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    return y.detach(), gradient


def apart(ours, theirs):
    """The norm of the difference over that of the peer's."""
    ours, theirs = ours.double(), theirs.double()
    return ((ours - theirs).norm() / theirs.norm()).item()


def measure(job):
    """Quantizing, both passes, and how far the results are from ours."""
    inputs, dtype = job["inputs"], getattr(torch, job["dtype"])
    weight = read(inputs, "weight")
    out, inner = weight.shape
    (codes, state), quantize = timed(
        job["quantizations"],
        lambda: bnb.functional.quantize_4bit(weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4"),
    )
    scales = state.absmax
    # As transformers makes it of a weight that it loaded.
    layer = bnb.nn.Linear4bit(inner, out, bias=False, compute_dtype=dtype, compress_statistics=True, quant_type="nf4", device="meta")
    layer.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, blocksize=BLOCK, compress_statistics=True, quant_type="nf4", module=layer
    ).to("cpu")
    assert torch.equal(layer.weight.data, codes) and layer.weight.quant_state.nested, "the layer has other codes"
    x = read(inputs, "x").to(dtype).requires_grad_()
    gradient = read(inputs, "gradient").to(dtype)

    # What was quantized is no part of what follows, and the codes are those of the layer.
    codes = layer.weight.data
    del weight, state
    before, forgotten = forget()
    (y, of_ones), passes = timed(job["passes"], lambda: both_ways(layer, x))
    peak = counted("VmHWM:") if forgotten else None

    # Once more with a gradient that tells rows and columns apart.
    (of_gradient,) = torch.autograd.grad((layer(x) * gradient).sum(dtype=torch.float32), x)
    ours = {name: read(job["ours"], name) for name in ("codes", "scale_codes", "y", "of_ones", "of_gradient")}
    theirs = {"y": y, "of_ones": of_ones, "of_gradient": of_gradient}
    answer = {
        "quantize": quantize, "passes": passes, "before": before, "peak": peak,
        "codes": int((ours["codes"] != codes.flatten()).sum()), "scales": int((ours["scale_codes"] != scales.flatten()).sum()),
        "apart": {name: apart(ours[name], tensor) for name, tensor in theirs.items()},
    }  # fmt: skip
    dense = torch.nn.Linear(inner, out, bias=False, device="meta")
    dense.weight = torch.nn.Parameter(read(inputs, "weight").to(dtype), requires_grad=False)
    _, answer["dense"] = timed(job["passes"], lambda: both_ways(dense, x))
    return answer


def main():
    """One of the two."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    print(json.dumps((write if job["write"] else measure)(job)))


main()
