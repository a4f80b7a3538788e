import pytest
import torch

from lorastudy.engine import matmul
from lorastudy.engine.matmul import arm_linear, is_replaced, linear

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["onednn", "without it"], autouse=True)
def library(request, monkeypatch):
    linear_of_onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if request.param == "onednn" and linear_of_onednn is None:
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(matmul, "_ONEDNN_LINEAR", linear_of_onednn if request.param == "onednn" else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_linear_is_the_product_with_the_transposed_weight(dtype, with_bias, transposed):
    x, weight, bias = draw(2, 5, 7), draw(3, 7, seed=1), draw(3, seed=2)
    given = weight.mT.contiguous().mT if transposed else weight
    y = linear(x.to(dtype), given.to(dtype), bias_O=bias.to(dtype) if with_bias else None)
    expected = (x.double() @ weight.double().mT + (bias.double() if with_bias else 0)).to(dtype)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected, rtol=1e-5 if dtype is torch.float32 else 2e-2, atol=1e-2 if dtype is torch.bfloat16 else 1e-5)  # fmt: skip


@pytest.mark.parametrize("min_size", [0, 1 << 30], ids=["one by one", "batched"])
def test_each_arm_meets_its_own_weight(min_size, monkeypatch):
    monkeypatch.setattr(matmul, "_MIN_SIZE_ALONE", min_size)
    x, weight = draw(4, 6, 5), draw(4, 3, 5, seed=1)
    expected = torch.stack([x[arm] @ weight[arm].T for arm in range(4)])
    torch.testing.assert_close(arm_linear(x, weight), expected)
    torch.testing.assert_close(arm_linear(x.mT.contiguous().mT, weight.mT.contiguous().mT), expected)


def test_only_fp32_on_a_cpu_is_replaced():
    assert not is_replaced(device=torch.device("cpu"), dtype=torch.bfloat16)
    assert not is_replaced(device=torch.device("cuda"), dtype=torch.float32)
