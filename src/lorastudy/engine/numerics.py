"""Which of several kernels computes a number, where torch would decide by itself.

A worker enters `numerics` around all that it trains, scores, generates and times.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lorastudy.errors import ModelError, first_line

#: torch's kernels for attention, the most wanted first. The next one serves what the one before cannot: flash attention
#: needs half precision and no mask. Never cuDNN: it builds a plan for each new length of rows, and torch prefers it or
#: not by version and GPU. A CPU has the first and the last, in this order anyway.
ATTENTION_KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)

#: In the texts of torch's errors about an operation, or cuBLAS, that would not give the same bits again.
_NOT_DETERMINISTIC = "use_deterministic_algorithms(True)"


@contextmanager
def numerics(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """In this context attention uses the first of `ATTENTION_KERNELS` that supports its inputs.

    On CUDA, `deterministic` makes a second run give the same bits: attention adds up its gradients in a fixed order,
    and so do additions into indexed rows. A CPU gives the same bits anyway. Both choices hold for the whole process, so
    also for autograd's own thread.

    Raises:
        ModelError: the model needs an operation that CUDA cannot do deterministically.
    """
    with sdpa_kernel(list(ATTENTION_KERNELS), set_priority=True):
        if deterministic and device.type == "cuda":
            with _deterministic_algorithms():
                yield
        else:
            yield


@contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    """Torch's switch, without its filling of new tensors: no result depends on that, and it costs a kernel each."""
    switches: Any = torch.utils.deterministic
    filling = switches.fill_uninitialized_memory
    switches.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(mode=True)
    try:
        yield
    except RuntimeError as error:
        if not is_nondeterministic(error):
            raise
        raise ModelError(
            f"deterministic: true: {first_line(error)} Set `deterministic: false`; a second run then gives other last bits"
        ) from error
    finally:
        torch.use_deterministic_algorithms(mode=False)
        switches.fill_uninitialized_memory = filling


def is_nondeterministic(error: BaseException) -> bool:
    """Whether torch refused an operation that would not give the same bits again."""
    return isinstance(error, RuntimeError) and _NOT_DETERMINISTIC in str(error)
