"""Learning rate schedules against transformers' own, step by step; and what a suite file may say of them."""

import itertools
import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import get_scheduler
from transformers.trainer_utils import SchedulerType

import tiny
from lorastudy.engine.arms import make_arm as arm_of_experiment
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.schedules import ADAPTIVE, Scheduler
from lorastudy.suite.settings import Settings

NAMES = get_args(Scheduler)
WAVES = st.sampled_from([0.5, 1.0, 1.7, 2.5])
SHARE = st.sampled_from([0.0, 0.05, 0.3, 1.0])
SHAPE = st.sampled_from(["linear", "cosine", "1-sqrt"])
LOWEST = st.one_of(
    st.fixed_dictionaries({"min_lr_rate": SHARE}),
    st.fixed_dictionaries({"min_lr": st.sampled_from([0.0, 1e-6, 1e-5])}),
)


def of(**optional):
    return st.fixed_dictionaries({}, optional=optional)


def both(first, second):
    return st.tuples(first, second).map(lambda pair: {**pair[0], **pair[1]})


OPTIONS = {
    "cosine": of(num_cycles=WAVES),
    "cosine_with_restarts": of(num_cycles=st.sampled_from([1, 2, 3, 2.5])),
    "polynomial": of(lr_end=st.sampled_from([0.0, 1e-6]), power=st.sampled_from([0, 0.5, 1, 2, 3.5])),
    "inverse_sqrt": of(timescale=st.integers(1, 50)),
    "cosine_with_min_lr": both(LOWEST, of(num_cycles=WAVES)),
    "cosine_warmup_with_min_lr": both(LOWEST, of(num_cycles=WAVES, warmup_lr_rate=SHARE)),
    "warmup_stable_decay": both(
        st.fixed_dictionaries({"num_decay_steps": st.integers(0, 50)}),
        of(
            num_stable_steps=st.integers(0, 30), warmup_type=SHAPE, decay_type=SHAPE, min_lr_ratio=SHARE, num_cycles=WAVES
        ),
    ),
}  # fmt: skip
CASES = st.sampled_from(NAMES).flatmap(lambda name: st.tuples(st.just(name), OPTIONS.get(name, st.just({}))))


def experiment(**values):
    sources = Sources(base_model="", dataset="")
    return Experiment(
        name="e",
        arm="e",
        experiment_type="custom",
        seed=0,
        settings=Settings.model_validate(values),
        sources=sources,
    )


def arm_of(num_steps, **values):
    return arm_of_experiment(experiment(**values), module_names=("m",), num_steps=num_steps)


def test_there_is_every_schedule_of_transformers_that_does_not_follow_a_measured_loss():
    assert {*NAMES, *ADAPTIVE} == {kind.value for kind in SchedulerType}


@settings(max_examples=400, deadline=None)
@given(CASES, st.integers(1, 40), st.floats(0, 0.99), st.integers(0, 45))
@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps")
def test_every_step_has_the_rate_of_transformers(case, num_steps, warmup_ratio, warmup_steps):
    (name, options), peak = case, 3e-4
    length = {"warmup_steps": warmup_steps} if warmup_steps % 2 else {"warmup_ratio": warmup_ratio}
    arm = arm_of(num_steps, lr_scheduler_type=name, lr_scheduler_kwargs=options, learning_rate=peak, **length)
    assert arm.num_warmup_steps == (
        warmup_steps if "warmup_steps" in length else math.ceil(warmup_ratio * num_steps)
    )
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    theirs = get_scheduler(
        name, optimizer, num_warmup_steps=arm.num_warmup_steps, num_training_steps=num_steps,
        scheduler_specific_kwargs=dict(options),
    )  # fmt: skip
    for step in range(num_steps + 2):
        assert arm.schedule.rate(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-19)
        if name == "polynomial" and arm.num_warmup_steps == step + 1 == num_steps:
            return  # transformers divides by zero after the last step, if all of them are the warm-up
        optimizer.step()
        theirs.step()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", NAMES)
def test_both_engines_train_at_these_rates_also_after_a_resume(name):
    needed = {
        "cosine_with_min_lr": {"min_lr_rate": 0.1},
        "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
        "warmup_stable_decay": {"num_decay_steps": 2},
    }
    base = tiny.make_base()
    options = tuple(needed.get(name, {}).items())
    arm = tiny.make_arm(
        tiny.targets(base, "q"), lr_scheduler_type=name, lr_scheduler_kwargs=options, num_steps=6
    )
    steps = tiny.make_steps(6)
    for kind in tiny.ENGINES.values():
        rates, state = [], None
        for part in (steps[:3], steps[3:]):
            engine = kind(base, [arm])
            if state is not None:
                engine.restore(state)
            engine.train(part, on_step=lambda result, rates=rates: rates.append(result.arms[0].learning_rate))
            state = engine.state()
            engine.close()
        assert rates == pytest.approx([arm.schedule.rate(step) for step in range(6)], rel=1e-12)


def test_options_at_their_defaults_and_other_spellings_make_the_same_experiment():
    same = [
        {"lr_scheduler_type": "cosine"},
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 0.5}},
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {}, "warmup_steps": 0},
    ]
    assert len({experiment(**values).id for values in same}) == 1
    whole, number = (
        experiment(lr_scheduler_type="polynomial", lr_scheduler_kwargs={"power": power}) for power in (2, 2.0)
    )
    assert whole.id == number.id
    assert experiment(warmup_steps=3).id != experiment().id != experiment(lr_scheduler_type="cosine").id


def test_experiments_of_other_schedules_train_together():
    kinds = [
        experiment(),
        experiment(warmup_steps=3),
        experiment(lr_scheduler_type="polynomial", lr_scheduler_kwargs={"power": 2.0}),
    ]
    for one, other in itertools.pairwise(kinds):
        assert one.pack_key == other.pack_key
        assert Experiment.from_json(other.to_json()) == other
