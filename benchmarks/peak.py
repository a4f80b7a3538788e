"""How fast a large matrix product goes on this device, by precision: what a share of the peak is a share of.

    python -m benchmarks.peak --device cpu --dtypes float32 bfloat16

The best of several products, since the peak is what the machine can do, not what it does on average; and by the fastest
of the libraries that torch carries, since a slow one would make every share look large. On a CPU torch multiplies fp32
with MKL, which uses half of the vector width on processors that are not Intel's; oneDNN is there too.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Product = Callable[[Tensor, Tensor], Tensor]

#: Edges of the square matrices: large enough that memory does not bound the product.
SIZES = {"cpu": 2048, "cuda": 8192}
NUM_PRODUCTS = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Print operations a second by precision as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peak")
    parser.add_argument("--device", default="cpu", choices=sorted(SIZES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--size", type=int)
    chosen = parser.parse_args(arguments)
    size = chosen.size or SIZES[chosen.device]
    found = {name: peak_flops(name, device=chosen.device, size=size) for name in chosen.dtypes}
    print(json.dumps(found))
    return 0


def peak_flops(dtype: str, *, device: str, size: int) -> float:
    """Operations a second (2 n^3 a product) of the fastest of several products, after one to warm up."""
    left = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    right = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    return max(_flops(product, left, right=right) for product in products(device, dtype=left.dtype))


def products(device: str, *, dtype: torch.dtype) -> list[Product]:
    """The libraries' products of a matrix with a transposed one. oneDNN has none in bf16 for a CPU without AVX-512."""
    onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    has_none = dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if device != "cpu" or onednn is None or has_none:
        return [F.linear]
    return [F.linear, lambda left, right: onednn(left, right, None, "none", [], "")]


def _flops(product: Product, left: Tensor, *, right: Tensor) -> float:
    device, best = left.device.type, float("inf")
    for number in range(NUM_PRODUCTS + 1):
        _wait(device)
        start = time.perf_counter()
        product(left, right)
        _wait(device)
        if number > 0:
            best = min(best, time.perf_counter() - start)
    return 2.0 * len(left) ** 3 / best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
