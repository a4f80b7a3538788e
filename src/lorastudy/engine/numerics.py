"""Which of several kernels computes a number, where torch would decide by itself.

A worker enters `numerics` around all that it trains, scores, generates and times.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

#: torch's kernels for attention, the most wanted first. The next one serves what the one before cannot: flash attention
#: needs half precision and no mask. Never cuDNN: it builds a plan for each new length of rows, and torch prefers it or
#: not by version and GPU. A CPU has the first and the last, in this order anyway.
ATTENTION_KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


@contextmanager
def numerics() -> Iterator[None]:
    """In this context attention uses the first of `ATTENTION_KERNELS` that supports its inputs.

    The choice holds for the whole process, so also for autograd's own thread on CUDA.
    """
    with sdpa_kernel(list(ATTENTION_KERNELS), set_priority=True):
        yield
