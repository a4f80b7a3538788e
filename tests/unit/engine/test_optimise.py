"""The packed optimizer against torch's and transformers' own."""

import math

import pytest
import torch
from torch import nn
from transformers import get_scheduler

import tiny
from lorastudy.engine.adapter_buffers import make_buffers, sorted_by_shape
from lorastudy.engine.lora import PackedLinear
from lorastudy.engine.optimise import LossScale, PackedAdamW

pytestmark = pytest.mark.usefixtures("one_thread")


def bank_of(arms):
    layers = {"one": PackedLinear(nn.Linear(5, 3)), "two": PackedLinear(nn.Linear(4, 6))}
    return make_buffers(sorted_by_shape(arms), layers=layers, device=tiny.CPU, dtype=torch.float32)


def four_arms():
    """Two of one shape with other settings, two of other shapes; one does not clip, one has a short life."""
    modules = ("one", "two")
    return [
        tiny.make_arm(
            modules, name="a", adam_epsilon=1e-8, weight_decay=0.1, max_grad_norm=0.5, learning_rate=1e-2
        ),
        tiny.make_arm(
            modules, name="b", adam_beta1=0.7, adam_beta2=0.9, adam_epsilon=1e-5, max_grad_norm=0.0
        ),
        tiny.make_arm(
            ("two",),
            name="c",
            adam_epsilon=1e-8,
            lr_scheduler_type="cosine",
            learning_rate=1e-1,
            num_warmup_steps=7,
        ),
        tiny.make_arm(modules, name="d", r=2, lr_scheduler_type="constant", max_grad_norm=1e-4),
    ]


def torch_twin(bank, arm):
    """Copies of the arm's weights under torch's AdamW, with transformers' schedule."""
    parameters = [nn.Parameter(tensor.clone()) for pair in bank.weights_of(arm).values() for tensor in pair]
    optimizer = torch.optim.AdamW(
        parameters, lr=arm.learning_rate, betas=(arm.adam_beta1, arm.adam_beta2), eps=arm.adam_epsilon,
        weight_decay=arm.weight_decay,
    )  # fmt: skip
    schedule = get_scheduler(
        arm.lr_scheduler_type, optimizer, num_warmup_steps=arm.num_warmup_steps, num_training_steps=arm.num_steps
    )  # fmt: skip
    return parameters, optimizer, schedule


def fill_gradients(bank, generator):
    """Random gradients of very different sizes."""
    for arm in bank.vectors:
        arm.grads_P.copy_(torch.randn(arm.grads_P.shape, generator=generator))
        arm.grads_P.mul_(10.0 ** torch.randint(-6, 3, arm.grads_P.shape, generator=generator))


def gradients_of(bank, arm):
    vectors = bank.vectors[bank.arms.index(arm)]
    return [
        grad.clone()
        for name in arm.module_names
        for grad in (vectors.grad_A_RD[name], vectors.grad_B_RO[name].mT)
    ]


def take_step(packed, *, active):
    norm_K = packed.grad_norms()
    packed.step(
        grad_norm_K=norm_K,
        active=active,
        is_finite_K=torch.isfinite(norm_K),
        loss_scale_K=torch.ones_like(norm_K),
    )
    packed.count_steps(active)


def step_twin(twin, grads, *, max_norm):
    parameters, optimizer, schedule = twin
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm or math.inf)
    optimizer.step()
    schedule.step()
    return norm.item()


def test_sixty_steps_equal_torchs_adamw_with_clipping_and_schedule():
    bank = bank_of(four_arms())
    twins = {arm.experiment_id: torch_twin(bank, arm) for arm in bank.arms}
    packed = PackedAdamW(bank)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        fill_gradients(bank, generator)
        grads = {arm.experiment_id: gradients_of(bank, arm) for arm in bank.arms}
        norms = packed.grad_norms()
        take_step(packed, active=[True] * 4)
        for number, arm in enumerate(bank.arms):
            norm = step_twin(twins[arm.experiment_id], grads[arm.experiment_id], max_norm=arm.max_grad_norm)
            assert norms[number].item() == pytest.approx(norm, rel=1e-6)
    for arm in bank.arms:
        mine = [tensor for pair in bank.weights_of(arm).values() for tensor in pair]
        for tensor, parameter in zip(mine, twins[arm.experiment_id][0], strict=True):
            torch.testing.assert_close(tensor, parameter.detach(), rtol=1e-5, atol=1e-6)


def test_a_skipped_step_counts_neither_for_the_schedule_nor_for_bias_correction():
    """As under GradScaler: on overflow neither optimizer nor schedule moves, while the other arms go on."""
    bank = bank_of(four_arms())
    skipping = bank.arms[0]
    twin = torch_twin(bank, skipping)
    packed = PackedAdamW(bank)
    generator = torch.Generator().manual_seed(1)
    for step in range(12):
        fill_gradients(bank, generator)
        grads = gradients_of(bank, skipping)
        taken = step not in {0, 1, 5}
        take_step(packed, active=[taken, True, True, True])
        if taken:
            step_twin(twin, grads, max_norm=skipping.max_grad_norm)
    assert packed.num_steps_taken == [9, 12, 12, 12]
    assert packed.learning_rates()[0] == pytest.approx(twin[2].get_last_lr()[0], rel=1e-12)
    mine = [tensor for pair in bank.weights_of(skipping).values() for tensor in pair]
    for tensor, parameter in zip(mine, twin[0], strict=True):
        torch.testing.assert_close(tensor, parameter.detach(), rtol=1e-5, atol=1e-6)


def test_arms_that_rest_leave_the_others_to_the_bit_and_keep_their_own_weights():
    arms = [tiny.make_arm(("one", "two"), name=str(number), seed=number, r=7) for number in range(5)]
    results = []
    for resting in (set(), {1, 3}):
        bank = bank_of(arms)
        packed = PackedAdamW(bank)
        generator = torch.Generator().manual_seed(2)
        start = [arm.weights_P.clone() for arm in bank.vectors]
        for _ in range(6):
            fill_gradients(bank, generator)
            active = [number not in resting for number in range(5)]
            take_step(packed, active=active)
        results.append([arm.weights_P for arm in bank.vectors])
        assert all(torch.equal(results[-1][number], start[number]) for number in resting)
    for number in (0, 2, 4):
        assert torch.equal(results[0][number], results[1][number])


def test_the_loss_scale_follows_gradscaler():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
    mine = LossScale(1, enabled=True, device=tiny.CPU)
    mine.GROWTH_INTERVAL = 3
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for finite in [True, False, False, True, True, True, True, False, True, True, True, True, True, True]:
        optimizer.zero_grad()
        scaler.scale((parameter * (1.0 if finite else math.inf)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        if finite:
            mine.succeeded(0)
        else:
            assert mine.overflowed(0)
        assert mine.scales == [scaler.get_scale()]


def test_an_arm_has_sixteen_overflows_before_it_counts_as_diverged():
    scale = LossScale(2, enabled=True, device=tiny.CPU)
    assert [scale.overflowed(0) for _ in range(17)] == [True] * 16 + [False]
    assert scale.scales[1] == 2.0**16


def test_other_precisions_do_not_scale():
    scale = LossScale(1, enabled=False, device=tiny.CPU)
    assert not scale.overflowed(0)
    for _ in range(LossScale.GROWTH_INTERVAL):
        scale.succeeded(0)
    assert scale.scales == [1.0]
