"""Loss scaling in the packed engine, arm by arm."""

import pytest
import torch

import tiny
from lorastudy.engine.batch import assemble
from lorastudy.engine.optimise import INITIAL_SCALE

pytestmark = pytest.mark.usefixtures("one_thread")


def base_with_large_gradients():
    """An fp16 model whose scaled gradients overflow at first: its head is large, and so is d loss / d hidden."""
    base = tiny.make_base(dtype=torch.float16)
    base.model.lm_head.weight.mul_(30.0)
    return base


@pytest.mark.parametrize("make_engine", tiny.ENGINES.values(), ids=tiny.ENGINES)
def test_overflowing_steps_are_skipped_and_do_not_end_an_arm(make_engine, tmp_path):
    base = base_with_large_gradients()
    # Few labels: the scale, 65536, is divided by their number, and meets the limit of 65504.
    rows = [tiny.make_row(range(2, 14), prompt_tokens=10)]
    steps = [[assemble(rows, device=tiny.CPU)]] * 12
    arms = [tiny.make_arm(tiny.targets(base, "qkvo"), num_warmup_steps=0, lr_scheduler_type="constant")]
    log, adapters = tiny.train(make_engine, base, arms, steps=steps, folder=tmp_path)
    skipped = [norm is None for norm in log.norms["a"]]
    assert skipped[0]
    assert not skipped[-1]
    assert log.diverged == {}
    assert None not in log.losses["a"]
    first = skipped.index(False)
    assert len(set(log.losses["a"][: first + 1])) == 1  # nothing moves while steps are skipped
    assert log.losses["a"][-1] < log.losses["a"][0]
    assert all(tensor.isfinite().all() for tensor in adapters["a"].values())


@pytest.mark.parametrize("make_engine", tiny.ENGINES.values(), ids=tiny.ENGINES)
def test_the_learning_rate_waits_for_skipped_steps(make_engine, tmp_path):
    base = base_with_large_gradients()
    steps = [[assemble([tiny.make_row(range(2, 14), prompt_tokens=10)], device=tiny.CPU)]] * 12
    arms = [tiny.make_arm(tiny.targets(base, "q"), num_warmup_steps=0, learning_rate=1e-3, num_steps=12)]
    log, _ = tiny.train(make_engine, base, arms, steps=steps, folder=tmp_path)
    taken = 0
    for norm, rate in zip(log.norms["a"], log.rates["a"], strict=True):
        assert rate == pytest.approx(1e-3 * (1 - taken / 12))
        taken += norm is not None
    assert 0 < taken < 12


def test_both_engines_agree_through_skipped_steps(tmp_path):
    base = base_with_large_gradients()
    steps = [[assemble([tiny.make_row(range(2, 14), prompt_tokens=10)], device=tiny.CPU)]] * 12
    arms = [tiny.make_arm(tiny.targets(base, "qv"), num_warmup_steps=0)]
    packed, _ = tiny.train(tiny.PackedEngine, base, arms, steps=steps, folder=tmp_path)
    reference, _ = tiny.train(tiny.ReferenceEngine, base, arms, steps=steps, folder=tmp_path)
    assert packed.rates["a"] == pytest.approx(reference.rates["a"])
    assert tiny.largest_relative(packed.losses["a"], reference.losses["a"]) <= 5e-3
    assert [norm is None for norm in packed.norms["a"]] == [norm is None for norm in reference.norms["a"]]
    norms = [[norm for norm in log.norms["a"] if norm is not None] for log in (packed, reference)]
    assert tiny.largest_relative(*norms) <= 2e-2  # both without the loss scale


def test_one_arms_overflow_is_no_other_arms_business(tmp_path):
    """`loud` has a scaling of 4000: once its lora_B is not zero, its gradients overflow where those of `quiet` do not."""
    base = tiny.make_base(dtype=torch.float16)
    attention = tiny.targets(base, "qkvo")
    quiet = tiny.make_arm(attention, name="quiet", num_warmup_steps=0)
    loud = tiny.make_arm(attention, name="loud", lora_alpha=16000.0, num_warmup_steps=0, learning_rate=1e-3)
    steps = tiny.make_steps(6)
    with tiny.opened(tiny.PackedEngine(base, [quiet, loud])) as engine:
        together = tiny.Log()
        engine.train(steps, on_step=together)
        scales = dict(zip(engine.experiment_ids, engine._loss_scale.scales, strict=True))
    alone, _ = tiny.train(tiny.PackedEngine, base, [quiet], steps=steps, folder=tmp_path)
    assert None in together.norms["loud"]
    assert scales["loud"] < scales["quiet"] == INITIAL_SCALE
    assert tiny.largest_relative(together.losses["quiet"], alone.losses["quiet"]) <= 1e-6


def test_a_large_scaling_alone_overflows_nothing():
    """Gradients are by s B in fp16, and meet s = 4000 in fp32. At this rate s B itself stays small."""
    base = tiny.make_base(dtype=torch.float16)
    arm = tiny.make_arm(
        tiny.targets(base, "qkvo"), lora_alpha=16000.0, num_warmup_steps=0, learning_rate=1e-7
    )
    log = tiny.Log()
    with tiny.opened(tiny.PackedEngine(base, [arm])) as engine:
        engine.train(tiny.make_steps(6), on_step=log)
    assert None not in log.norms["a"]
    # Times the loss scale, such a norm is far above the largest fp16 number.
    assert min(log.norms["a"]) * INITIAL_SCALE > 100 * torch.finfo(torch.float16).max
