"""Adapters in memory: by rank as on a CPU, and padded to one group as on a GPU."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import tiny
from lorastudy.engine import adapter_buffers, patches
from lorastudy.engine.adapter_buffers import make_buffers, sorted_by_shape
from lorastudy.engine.batch import assemble
from lorastudy.engine.lora import PackedLinear
from lorastudy.engine.packed import PackedEngine

pytestmark = pytest.mark.usefixtures("one_thread")


def buffers_of(arms, *, dtype=torch.float32, padded=False):
    layers = {
        "one": PackedLinear(nn.Linear(5, 3, dtype=dtype)),
        "two": PackedLinear(nn.Linear(4, 6, dtype=dtype)),
    }
    return make_buffers(sorted_by_shape(arms), layers=layers, device=tiny.CPU, dtype=dtype, padded=padded)


def mixed_arms():
    both = ("one", "two")
    return [
        tiny.make_arm(both, name="a", r=4),
        tiny.make_arm(("one",), name="b", r=4, lora_alpha=3.0),
        tiny.make_arm(both, name="c", r=2),
        tiny.make_arm(both, name="d", r=4, seed=1),
        tiny.make_arm(both, name="e", r=4, lora_dropout=0.1),
    ]


def test_groups_are_arms_of_one_shape_and_weights_are_found_by_arm():
    arms = mixed_arms()
    buffers = buffers_of(arms)
    for slots in buffers.slots.values():
        for slot in slots:
            assert len({arm.shape for arm in buffers.arms[slot.start : slot.stop]}) == 1
    assert len(buffers.slots["one"]) == 4
    assert sorted(arm.experiment_id for arm in buffers.arms) == list("abcde")
    first, other = (buffers.weights_of(arm) for arm in (arms[0], replace(arms[3])))
    assert first["one"][0].shape == (4, 5)
    assert first["two"][1].shape == (6, 4)
    assert not torch.equal(first["one"][0], other["one"][0])
    assert not first["one"][1].any()


def test_in_fp32_the_slots_of_equal_arms_are_the_weights_themselves():
    buffers = buffers_of(mixed_arms())
    assert not buffers.refreshed.destinations
    assert not buffers.collected.destinations
    for arm in buffers.arms:
        buffers.weights_of(arm)["one"][0].fill_(7.0)
    assert all(bool((slot.lora_A_GRD == 7.0).all()) for slot in buffers.slots["one"])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_slot_holds_lora_A_and_s_B_rounded_once_and_zeros_beyond_an_arms_rank(dtype, padded):
    buffers = buffers_of(mixed_arms(), dtype=dtype, padded=padded)
    for arm in buffers.arms:
        for tensors in buffers.weights_of(arm).values():
            for tensor in tensors:
                tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(arm.r)))
    buffers.refresh()
    for name, slots in buffers.slots.items():
        assert len(slots) == 1 or not padded
        for slot in slots:
            for row, arm in enumerate(buffers.arms[slot.start : slot.stop]):
                lora_A_RD, scaled_B_RO = slot.lora_A_GRD[row], slot.scaled_B_GRO[row]
                assert lora_A_RD.dtype is scaled_B_RO.dtype is dtype
                r = arm.r if name in arm.module_names else 0
                assert not lora_A_RD[r:].any()
                assert not scaled_B_RO[r:].any()
                if r:
                    weights_A_RD, weights_B_OR = buffers.weights_of(arm)[name]
                    assert torch.equal(lora_A_RD[:r], weights_A_RD.to(dtype))
                    assert torch.equal(scaled_B_RO[:r], (weights_B_OR.mT * arm.scaling).to(dtype))


@pytest.mark.parametrize("padded", [False, True])
def test_the_gradient_of_B_is_s_times_that_of_s_B(padded):
    buffers = buffers_of(mixed_arms(), padded=padded)
    for slot in buffers.slots["two"]:
        slot.grad_A_GRD.fill_(2.0)
        slot.grad_B_GRO.fill_(2.0)
    buffers.collect_gradients()
    for arm, vectors in zip(buffers.arms, buffers.vectors, strict=True):
        if "two" in arm.module_names:
            assert vectors.grad_A_RD["two"].eq(2.0).all()
            assert vectors.grad_B_RO["two"].eq(2.0 * arm.scaling).all()
        assert not vectors.grad_A_RD["one"].any()
    buffers.zero_grad()
    buffers.collect_gradients()
    assert not any(vectors.grads_P.any() for vectors in buffers.vectors)


def dropping(arms):
    """Every other arm with dropout, of two probabilities."""
    return [replace(arm, lora_dropout=(0.0, 0.1, 0.0, 0.3)[number % 4]) for number, arm in enumerate(arms)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padded_ranks_train_as_each_rank_does_by_itself(dtype, monkeypatch):
    """Gradients of a step, relative to their norm. In bf16 sums of another order are rounded otherwise."""
    tolerance = {torch.float32: 1e-6, torch.bfloat16: patches.TOLERANCES[torch.bfloat16]}[dtype]
    batch = [assemble(tiny.make_rows(4), device=tiny.CPU)]
    gradients = {}
    for padded in (False, True):
        monkeypatch.setattr(adapter_buffers, "pads_ranks", lambda _, padded=padded: padded)
        base = tiny.make_base(dtype=dtype)
        with tiny.opened(PackedEngine(base, dropping(tiny.seven_arms(base)))) as engine:
            assert all(len(slots) == 1 for slots in engine._adapters.slots.values()) is padded
            for number, vectors in enumerate(engine._adapters.vectors):
                vectors.weights_P.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
            engine._adapters.refresh()
            engine._accumulate(batch)
            engine._adapters.collect_gradients()
            gradients[padded] = [vectors.grads_P.clone() for vectors in engine._adapters.vectors]
    for by_rank, in_one in zip(gradients[False], gradients[True], strict=True):
        assert (by_rank - in_one).norm() <= tolerance * by_rank.norm()


def test_an_arm_in_a_padded_pack_equals_itself_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_buffers, "pads_ranks", lambda _: True)
    base = tiny.make_base()
    arms, steps = dropping(tiny.seven_arms(base)), tiny.make_steps(20, accumulation=2)
    seven = tiny.train(PackedEngine, base, arms, steps=steps, folder=tmp_path / "seven")
    for arm in arms:
        name = arm.experiment_id
        alone = tiny.train(PackedEngine, base, [arm], steps=steps, folder=tmp_path / name)
        assert tiny.largest_relative(seven[0].losses[name], alone[0].losses[name]) <= 1e-6
        assert tiny.largest_difference(seven[1][name], alone[1][name]) <= 1e-6


def test_a_padded_pack_goes_on_from_its_state_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_buffers, "pads_ranks", lambda _: True)
    base = tiny.make_base()
    arms, steps = dropping(tiny.seven_arms(base)), tiny.make_steps(8)
    _, whole = tiny.train(PackedEngine, base, arms, steps=steps, folder=tmp_path / "whole")
    with tiny.opened(PackedEngine(base, arms)) as engine:
        engine.train(steps[:5], on_step=tiny.Log())
        state = engine.state()
    with tiny.opened(PackedEngine(base, arms)) as engine:
        engine.restore(state)
        engine.train(steps[5:], on_step=tiny.Log())
        resumed = tiny.adapters_of(engine, tmp_path / "resumed")
    assert all(tiny.largest_difference(resumed[name], whole[name]) == 0 for name in whole)
