"""Which kernels compute a worker's numbers. There is no GPU here: what torch was told is looked at."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from lorastudy.engine.numerics import numerics

#: Flash attention, then the memory-efficient one, then plain products.
OURS = (
    [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
    (True, True, True, False),
)


def attention_kernels():
    """torch's order of kernels, as far as we choose it, and whether flash, efficient, math and cuDNN are allowed."""
    order = [SDPBackend(number) for number in torch._C._get_sdp_priority_order()]
    allowed = (
        torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled(),
    )  # fmt: skip
    return order[:3], allowed


def test_attention_is_flash_then_efficient_then_plain_and_never_cudnn():
    before = attention_kernels()
    with numerics():
        assert attention_kernels() == OURS
    assert attention_kernels() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_attention_keeps_its_bits(dtype):
    q, k, v = (
        torch.randn(2, 3, 40, 8, dtype=dtype, generator=torch.Generator().manual_seed(n)) for n in range(3)
    )
    own = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    with numerics():
        assert torch.equal(F.scaled_dot_product_attention(q, k, v, is_causal=True), own)
