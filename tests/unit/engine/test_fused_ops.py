from functools import partial

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

import tiny
from lorastudy.engine.fused_ops import (
    ROTATION,
    FusedOps,
    cuda_rms_norm,
    find_fused_ops,
    rms_norm,
    rotated,
    tanh_gelu,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_gradient(function, x, dy):
    x = x.detach().requires_grad_()
    y = function(x)
    return [y, *torch.autograd.grad(y, x, dy)]


def llama_norm(size, *, dtype):
    """With a weight that differs from channel to channel; transformers computes in fp32 at least."""
    norm = LlamaRMSNorm(size, eps=1e-3).to(dtype)
    norm.weight = nn.Parameter(draw(size, dtype=dtype, seed=1), requires_grad=False)
    return norm


def ours(norm):
    return partial(rms_norm, weight_D=norm.weight, eps=norm.variance_epsilon)


def test_the_norm_equals_llamas_with_its_gradient():
    norm = llama_norm(24, dtype=torch.float32)
    x, dy = draw(3, 7, 24, dtype=torch.float32), draw(3, 7, 24, dtype=torch.float32, seed=2)
    torch.testing.assert_close(
        with_gradient(ours(norm), x, dy), with_gradient(norm, x, dy), rtol=1e-5, atol=1e-6
    )


def test_the_norms_gradient_is_its_derivative():
    """By finite differences: an oracle that knows neither transformers nor autograd's formulas."""
    weight_D, x = draw(4), draw(2, 3, 4)
    x_step, dy = draw(2, 3, 4, seed=3), draw(2, 3, 4, seed=4)

    def loss(x):
        return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1) * weight_D * dy).sum()

    _, dx = with_gradient(partial(rms_norm, weight_D=weight_D.float(), eps=0.1), x.float(), dy.float())
    expected = (loss(x + 1e-5 * x_step) - loss(x - 1e-5 * x_step)) / 2e-5
    assert (dx.double() * x_step).sum().item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_norm_rounds_where_llamas_does(dtype):
    norm = llama_norm(64, dtype=dtype)
    x, dy = draw(5, 64, dtype=dtype), draw(5, 64, dtype=dtype, seed=2)
    (y, dx), (own_y, own_dx) = with_gradient(ours(norm), x, dy), with_gradient(norm, x, dy)
    assert (y != own_y).float().mean().item() < 0.02  # where the last bit of a sum tips a rounding
    error = with_gradient(llama_norm(64, dtype=torch.float32), x.float(), dy.float())[1] - dx.float()
    own_error = with_gradient(llama_norm(64, dtype=torch.float32), x.float(), dy.float())[1] - own_dx.float()
    assert error.norm() < 1.1 * own_error.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_rotation_is_no_further_from_the_truth_than_llamas(dtype):
    q, dq = draw(2, 3, 5, 8, dtype=dtype), draw(2, 3, 5, 8, dtype=dtype, seed=2)
    angle = draw(1, 5, 4, seed=3).repeat(1, 1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)

    def errors(function):
        def turned(x):
            return function(x, x, cos.to(x.dtype), sin.to(x.dtype))[0]

        truth = with_gradient(turned, q.double(), dq.double())
        return [
            (x.double() - true).norm().item()
            for x, true in zip(with_gradient(turned, q, dq), truth, strict=True)
        ]

    for error, own_error in zip(errors(rotated), errors(modeling_llama.apply_rotary_pos_emb), strict=True):
        assert 0 < error <= own_error


@pytest.mark.parametrize("layout", ["heads first", "tokens first"])
def test_the_rotation_equals_llamas_with_its_gradient(layout):
    shape = (2, 3, 5, 8) if layout == "heads first" else (2, 5, 3, 8)
    q, k, dq = (draw(*shape, seed=seed) for seed in (0, 1, 2))
    if layout == "tokens first":  # as projections come, seen with heads first
        q, k, dq = (x.transpose(1, 2) for x in (q, k, dq))
    angle = draw(1, 5, 4, seed=3).repeat(1, 1, 2)
    cos, sin = angle.cos(), angle.sin()
    for number in (0, 1):

        def turned(x, function, number=number):
            return function(*((x, k) if number == 0 else (q, x)), cos, sin)[number]

        own = with_gradient(partial(turned, function=modeling_llama.apply_rotary_pos_emb), q, dq)
        torch.testing.assert_close(with_gradient(partial(turned, function=rotated), q, dq), own)


def test_a_model_runs_with_them_and_is_left_as_it_was():
    base = tiny.make_base("llama")
    found = find_fused_ops(base.model, device=tiny.CPU)
    assert len(found.norms) == 5  # two in each of two layers, one at the end
    own = getattr(modeling_llama, ROTATION)
    with found.applied():
        assert getattr(modeling_llama, ROTATION) is not own
        assert all("forward" in vars(norm) for norm in found.norms)
    assert getattr(modeling_llama, ROTATION) is own
    assert not any("forward" in vars(norm) for norm in found.norms)


def test_it_is_left_as_it_was_by_an_error_too():
    found = find_fused_ops(tiny.make_base("llama").model, device=tiny.CPU)
    own = getattr(modeling_llama, ROTATION)
    with pytest.raises(ZeroDivisionError), found.applied():
        raise ZeroDivisionError
    assert getattr(modeling_llama, ROTATION) is own
    assert not any("forward" in vars(norm) for norm in found.norms)


class Model(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm


class ShiftedRMSNorm(LlamaRMSNorm):
    """As Gemma has it, by the names that Llama's has."""

    def forward(self, hidden_states):
        return super().forward(hidden_states) * (1 + self.weight)


@pytest.mark.parametrize(
    ("norm", "is_replaced"),
    [
        (LlamaRMSNorm(32), True),
        (LlamaRMSNorm(32).bfloat16(), True),
        (ShiftedRMSNorm(32), False),
        (Olmo2RMSNorm(32), True),
        (nn.LayerNorm(32), False),
    ],
)
def test_only_a_norm_that_gives_the_same_is_replaced(norm, is_replaced):
    assert bool(find_fused_ops(Model(norm), device=tiny.CPU).norms) == is_replaced


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_norm_that_multiplies_before_it_rounds_is_left_alone_in_half_precision(dtype):
    assert not find_fused_ops(Model(Olmo2RMSNorm(512).to(dtype)), device=tiny.CPU).norms


def train(base, *, monkeypatch, plainly):
    """Losses of three steps of one arm on every layer."""
    with monkeypatch.context() as patch:
        if plainly:
            patch.setattr("lorastudy.engine.packed.find_fused_ops", lambda *_, **__: FusedOps())
        engine = tiny.PackedEngine(base, [tiny.make_arm(tiny.targets(base, "all"), num_steps=3)])
    losses = []
    with tiny.opened(engine):
        engine.train(tiny.make_steps(3), on_step=lambda result: losses.append(result.arms[0].loss))
    return losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, *tiny.OTHER_ARCHITECTURES])
def test_every_architecture_trains_as_it_does_without(architecture, dtype, monkeypatch):
    rel = 1e-5 if dtype is torch.float32 else 2e-2
    plain = train(tiny.make_base(architecture, dtype=dtype), monkeypatch=monkeypatch, plainly=True)
    ours = train(tiny.make_base(architecture, dtype=dtype), monkeypatch=monkeypatch, plainly=False)
    assert ours == pytest.approx(plain, rel=rel)


def test_a_replacement_that_turns_out_wrong_is_dropped_and_the_model_trained(monkeypatch):
    monkeypatch.setattr(
        "lorastudy.engine.fused_ops.rms_norm", lambda x_ND, *, weight_D, eps: 2 * x_ND * weight_D + eps
    )
    monkeypatch.setattr("lorastudy.engine.fused_ops.gives_the_same", lambda *_: True)
    base = tiny.make_base()
    engine = tiny.PackedEngine(base, [tiny.make_arm(tiny.targets(base, "q"))])
    with tiny.opened(engine):
        assert engine._fused_ops == FusedOps()


def test_a_rotation_of_other_channels_is_left_alone(monkeypatch):
    """Neighbouring channels as the two sides of an angle, as GPT-J has it."""

    def neighbours(q, k, cos, sin, unsqueeze_dim=1):
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)

        def turned(x):
            return x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2) * sin

        return turned(q), turned(k)

    monkeypatch.setattr(modeling_llama, ROTATION, neighbours)
    assert not find_fused_ops(tiny.make_base("llama").model, device=tiny.CPU).rotations


def test_on_a_gpu_the_norm_is_torchs_own_kernel():
    found = find_fused_ops(tiny.make_base("llama").model, device=torch.device("cuda"))
    assert len(found.norms) == 5
    assert found.rotations
    with found.applied():
        assert all(norm.forward.func is cuda_rms_norm for norm in found.norms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_norms_are_the_same_with_their_gradients(dtype):
    norm = llama_norm(64, dtype=dtype)
    x, dy = draw(5, 64, dtype=dtype), draw(5, 64, dtype=dtype, seed=2)
    other = partial(cuda_rms_norm, weight_D=norm.weight, eps=norm.variance_epsilon)
    for one, two in zip(with_gradient(ours(norm), x, dy), with_gradient(other, x, dy), strict=True):
        assert (one.float() - two.float()).norm() <= 2 * torch.finfo(dtype).eps * one.float().norm()


@pytest.mark.parametrize(
    ("name", "is_replaced"),
    [("gelu_new", True), ("gelu_fast", True), ("gelu_pytorch_tanh", True), ("gelu", False), ("quick_gelu", False), ("relu2", False)],
)  # fmt: skip
def test_only_an_activation_that_gives_the_same_is_replaced(name, is_replaced):
    assert bool(find_fused_ops(Model(ACT2FN[name]), device=tiny.CPU).gelus) == is_replaced


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_gelu_is_no_further_from_the_truth_than_the_models_own(dtype):
    x, dy = draw(400, dtype=dtype), draw(400, dtype=dtype, seed=1)
    truth = with_gradient(ACT2FN["gelu_new"], x.double(), dy.double())
    results = [with_gradient(function, x, dy) for function in (tanh_gelu, ACT2FN["gelu_new"])]
    for true, one, own in zip(truth, *results, strict=True):
        assert (one.double() - true).norm() < (own.double() - true).norm()


@pytest.mark.parametrize("architecture", ["gpt2", "phi"])
def test_a_model_with_gelu_uses_it_and_is_left_as_it_was(architecture):
    found = find_fused_ops(tiny.make_base(architecture).model, device=tiny.CPU)
    assert found.gelus
    with found.applied():
        assert all(gelu.forward is tanh_gelu for gelu in found.gelus)
    assert not any("forward" in vars(gelu) for gelu in found.gelus)
