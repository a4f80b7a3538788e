"""Frozen layers of bitsandbytes: outputs arm by arm, and the weight that the derivative uses."""

import sys

import bitsandbytes
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.pytorch_utils import Conv1D

from lorastudy.engine.quantised import (
    fake_quantised,
    features,
    feels_other_rows,
    frozen_output,
    frozen_weight_OD,
    keep_trainable_on_cpu,
    tensors_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def make_layer(kind, *, bias=True):
    plain = nn.Linear(64, 32, bias=bias)
    if kind == "plain":
        return plain
    if kind == "8bit":
        layer = bitsandbytes.nn.Linear8bitLt(64, 32, bias=bias, has_fp16_weights=False, threshold=6.0)
    else:
        layer = bitsandbytes.nn.Linear4bit(64, 32, bias=bias, quant_type=kind, compute_dtype=torch.bfloat16)
    layer.load_state_dict(plain.state_dict())
    layer.to("cpu").eval()
    keep_trainable_on_cpu(nn.Sequential(layer))
    return layer.requires_grad_(requires_grad=False)


def inputs(num_arms=3, *, outlier_in=None):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_arms, 5, 64, generator=generator).bfloat16()
    if outlier_in is not None:
        x[outlier_in, 2, 7] = (
            60.0  # beyond LLM.int8()'s threshold of 6: its whole column goes in half precision
        )
    return x


@pytest.mark.parametrize("kind", ["8bit", "nf4", "fp4"])
def test_no_arm_feels_an_outlier_of_another(kind):
    layer = make_layer(kind)
    calm, wild = (frozen_output(layer, inputs(outlier_in=arm), num_arms=3) for arm in (None, 1))
    assert torch.equal(calm[[0, 2]], wild[[0, 2]])
    assert not torch.equal(calm[1], wild[1])


def test_only_eight_bits_feel_other_rows():
    """What makes the arm-by-arm path necessary: without it the outlier of arm 1 changes arm 0."""
    assert feels_other_rows(make_layer("8bit"))
    assert not feels_other_rows(make_layer("nf4"))
    layer = make_layer("8bit")
    calm, wild = (layer(inputs(outlier_in=arm)) for arm in (None, 1))
    assert not torch.equal(calm[0], wild[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["8bit", "nf4", "fp4"])
def test_output_and_derivative_are_bitsandbytes_own(kind, bias):
    layer = make_layer(kind, bias=bias)
    x = inputs(1).requires_grad_()
    y = layer(x)
    (expected,) = torch.autograd.grad(y, x, torch.ones_like(y))
    mine = frozen_output(layer, x.detach(), num_arms=1)
    torch.testing.assert_close(mine, y.detach(), rtol=2e-2, atol=2e-2)
    derivative = torch.ones_like(y) @ frozen_weight_OD(layer, dtype=torch.bfloat16)
    torch.testing.assert_close(derivative, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("plain", 0.0), ("8bit", 1e-3), ("nf4", 2e-2), ("fp4", 3e-2)]
)
def test_the_weight_is_near_the_one_that_was_quantised(kind, tolerance):
    torch.manual_seed(0)
    layer = make_layer(kind)
    torch.manual_seed(0)
    original = nn.Linear(64, 32).weight
    assert features(layer) == (64, 32)
    # Weights are uniform on +-1/8; 8 bits have steps of 1/1000 of that, 4 bits of 1/7 or so.
    assert (frozen_weight_OD(layer, dtype=torch.float32) - original).abs().max() <= tolerance


def on_a_gpu(inputs, outputs):
    """A linear layer of fake tensors on CUDA, for a context of fake tensors."""
    layer = nn.Linear(inputs, outputs, bias=False, device="meta")
    layer.weight = nn.Parameter(torch.empty(outputs, inputs, device="cuda"), requires_grad=False)
    return layer


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_layer_without_content_is_on_the_device_of_its_model(quantization, double_quant):
    with FakeTensorMode():
        layer = fake_quantised(on_a_gpu(64, 32), quantization, quant_type="nf4", double_quant=double_quant)
        assert {tensor.device.type for tensor in tensors_of(layer)} == {"cuda"}


def test_the_benchmark_quantises_eight_bits_from_the_cpu(monkeypatch):
    """On a GPU bitsandbytes would leave a weight that is there already in half precision."""
    from benchmarks import random_base

    seen = []

    def int8_params(weight, **_):
        seen.append(weight.device.type)
        return nn.Parameter(weight, requires_grad=False)

    monkeypatch.setattr(bitsandbytes.nn, "Linear8bitLt", lambda **_: nn.Module())
    monkeypatch.setattr(bitsandbytes.nn, "Int8Params", int8_params)
    with FakeTensorMode():
        model = nn.Sequential(on_a_gpu(4, 4))
        monkeypatch.setattr(random_base, "linear_modules", lambda model: {"0": model[0]})
        random_base.quantise(model, quantization="8bit", dtype=torch.bfloat16)
        assert seen == ["cpu"]
        assert model[0].weight.device.type == "cuda"


def test_conv1d_keeps_its_weight_transposed():
    layer = Conv1D(3, 5)
    assert features(layer) == (5, 3)
    assert torch.equal(frozen_weight_OD(layer, dtype=torch.float32), layer.weight.T)


def test_where_bitsandbytes_was_never_imported_no_layer_is_of_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    layer = nn.Linear(2, 3)
    assert not feels_other_rows(layer)
    assert torch.equal(frozen_weight_OD(layer, dtype=torch.float32), layer.weight)
