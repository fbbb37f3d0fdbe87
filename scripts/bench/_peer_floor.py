"""Measures what this machine does at most with the peer's libtorch: matrix products by dtype, and reading memory."""

import json
import sys
import time

import torch

TRIES = 5


def best(work):
    """The shortest of some tries, after one that does not count."""
    work()
    times = []
    for _ in range(TRIES):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def products(dtype):
    """FLOP/s of the fastest product among shapes like the model's and a square one."""
    rates = []
    for rows, inner, outer in ((2048, 576, 1536), (2048, 1536, 576), (1024, 1024, 1024)):
        left, right = torch.randn(rows, inner).to(dtype), torch.randn(outer, inner).to(dtype)
        rates.append(2 * rows * inner * outer / best(lambda: torch.nn.functional.linear(left, right)))
    return max(rates)


def reading():
    """Bytes a second out of a tensor that no cache holds."""
    numbers = torch.ones(1 << 27)
    return numbers.numel() * 4 / best(numbers.sum)


job = json.loads(sys.argv[1])
torch.set_num_threads(job["threads"])
with torch.no_grad():
    print(json.dumps({"f32": products(torch.float32), "bf16": products(torch.bfloat16), "bytes": reading()}))
