"""How fast a large matrix product goes on this device, by precision: what a share of the peak is a share of.

    python -m benchmarks.peak --device cpu --dtypes float32 bfloat16

The best of several products, since the peak is what the machine can do, not what it does on average.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence

import torch

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
    best = float("inf")
    for number in range(NUM_PRODUCTS + 1):
        _wait(device)
        start = time.perf_counter()
        left @ right
        _wait(device)
        if number > 0:
            best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
