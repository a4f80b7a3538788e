"""Which kernels compute a worker's numbers. There is no GPU here: what torch was told is looked at."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from lorastudy.engine import environment as environment_module
from lorastudy.engine.environment import cuda_allocator, environment
from lorastudy.engine.numerics import is_nondeterministic, numerics
from lorastudy.errors import ModelError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
#: Flash attention, then the memory-efficient one, then plain products; and not cuDNN.
OURS = (
    [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
    (True, True, True, False),
)


def attention_kernels():
    """The first three kernels of torch's order, and whether flash, efficient, math and cuDNN are allowed."""
    order = [SDPBackend(number) for number in torch._C._get_sdp_priority_order()]
    allowed = (
        torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled(),
    )  # fmt: skip
    return order[:3], allowed


def determinism():
    """Whether torch must be deterministic, whether it only warns, and whether it fills new tensors then."""
    return (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )  # fmt: skip


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_attention_is_flash_then_efficient_then_plain_and_never_cudnn(device):
    before = attention_kernels()
    with numerics(device, deterministic=False):
        assert attention_kernels() == OURS
    assert attention_kernels() == before


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_attention_keeps_its_bits(dtype, deterministic):
    q, k, v = (
        torch.randn(2, 3, 40, 8, dtype=dtype, generator=torch.Generator().manual_seed(n)) for n in range(3)
    )
    own = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    with numerics(CPU, deterministic=deterministic):
        assert torch.equal(F.scaled_dot_product_attention(q, k, v, is_causal=True), own)


def test_cuda_is_deterministic_unless_the_suite_says_otherwise():
    """Not with warnings alone: attention's backward pass then stays as it is. New tensors are not filled."""
    before = determinism()
    assert before[0] is False
    with numerics(CUDA, deterministic=True):
        assert determinism() == (True, False, False)
    assert determinism() == before
    for device, deterministic in ((CUDA, False), (CPU, True), (CPU, False)):
        with numerics(device, deterministic=deterministic):
            assert determinism() == before


def test_an_operation_that_cannot_be_deterministic_is_named_with_the_fix():
    before = determinism()
    with pytest.raises(
        ModelError, match=r"^deterministic: true: put_ .* Set `deterministic: false`"
    ) as caught:
        with numerics(CUDA, deterministic=True):
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert is_nondeterministic(caught.value.__cause__)
    assert determinism() == before
    with pytest.raises(RuntimeError, match=r"^another$"), numerics(CUDA, deterministic=True):
        raise RuntimeError("another")


def test_the_environment_says_whether_a_second_run_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr(environment_module, "device_name", lambda _: "a device")
    found = {}
    for device in (CPU, CUDA):
        for deterministic in (True, False):
            with numerics(device, deterministic=deterministic):
                found[device.type, deterministic] = environment(device).algorithms
    assert found.pop(("cuda", False)) == "fastest"
    assert set(found.values()) == {"deterministic"}


def test_the_allocator_is_recorded_as_cuda_reads_it(monkeypatch):
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    assert cuda_allocator(CPU) is None
    assert cuda_allocator(CUDA) == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")
    assert cuda_allocator(CUDA) == "max_split_size_mb:128"
