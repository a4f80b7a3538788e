"""Packs that are uneven become even by a pause: checked by adding up what each worker trains, measures and scores."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from lorastudy.executors.multi_worker import shares
from lorastudy.planning.packing import ArmWork, Balance, PlannedPack, balance_packs, form_packs
from lorastudy.planning.predictions import Predictions
from lorastudy.protocol.records import Pack
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.question import rung_step
from lorastudy.suite.settings import Settings


def experiments(count: int, **settings: object) -> list[Experiment]:
    return [
        Experiment(
            name=f"e{number}", arm=f"e{number}", experiment_type="custom", seed=0,
            settings=Settings(max_steps=20, lora_rank=1 + number, **settings), sources=Sources(base_model="b", dataset="d"),
        )
        for number in range(count)
    ]  # fmt: skip


def packs(count: int, *, workers: int) -> list[PlannedPack]:
    return form_packs(experiments(count, max_arms_per_pack=64), num_at_once=workers)


def legs(given: Sequence[PlannedPack], change: Balance) -> list[list[Pack]]:
    """Both legs as the worker is told of them."""
    first, second = [], []
    for pack in given:
        until = change.pause_at.get(pack.experiments[0].id)
        together = tuple(each for each in pack.experiments if each.id not in change.alone)
        parts = [together, *((each,) for each in pack.experiments if each.id in change.alone)]
        first.append(Pack(id="1", attempt=1, engine="auto", experiments=pack.experiments, pause_at=until))
        if until is not None:
            second += [
                Pack(id="2", attempt=1, engine="auto", experiments=part, begun=until) for part in parts
            ]
    return [first, second]


@pytest.mark.parametrize(
    ("count", "workers"), [(5, 2), (3, 2), (7, 2), (9, 2), (11, 2), (8, 3), (6, 4), (10, 4), (12, 8)]
)
def test_all_workers_train_the_same_in_either_leg(count, workers, tmp_path):
    given = packs(count, workers=workers)
    change = balance_packs(given, num_at_once=workers)
    assert change is not None
    total = 0.0
    for leg, told in enumerate(legs(given, change)):
        folders = []
        for number, pack in enumerate(told):
            folders.append(tmp_path / f"{leg}-{number}")
            folders[-1].mkdir()
            pack.write(folders[-1])
        work = [
            sum(
                len(pack.experiments) * ((1.0 if pack.pause_at is None else pack.pause_at) - pack.begun)
                for pack in map(Pack.read, lane)
            )
            for lane in shares(folders, num_lanes=workers)
        ]
        assert work == pytest.approx([work[0]] * workers)
        total += work[0]
    assert total == pytest.approx(count / workers)


def test_five_arms_in_two_workers():
    # 3 x 1/2 = 2 x 3/4 = 1.5; then 2 x 1/2 = 1, and 2 x 1/4 + 1/2 = 1
    change = balance_packs(packs(5, workers=2), num_at_once=2)
    by_name = {each.id: each.name for each in experiments(5, max_arms_per_pack=64)}
    assert {by_name[key]: share for key, share in change.pause_at.items()} == {
        "e0": 0.75, "e1": 0.75, "e2": 0.5, "e3": 0.5, "e4": 0.5,
    }  # fmt: skip
    assert {by_name[key] for key in change.alone} == {"e4"}


@pytest.mark.parametrize(
    ("count", "workers"),
    [
        (4, 2),  # even already
        (1, 2),  # one worker stands idle whatever is done
        (4, 3),  # what one worker has too much cannot be halved among two
        (21, 2),  # 1 - 21 / 22 is less than a twentieth
    ],
)
def test_else_the_packs_stay_as_they_are(count, workers):
    assert balance_packs(packs(count, workers=workers), num_at_once=workers) is None


def test_packs_of_different_training_are_left_alone():
    pack, other = packs(5, workers=2)
    longer = Settings(max_steps=40, max_arms_per_pack=64)
    first = other.experiments[0]
    changed = Experiment(
        name="e", arm="e", experiment_type="custom", seed=9, settings=longer, sources=first.sources
    )
    uneven = [pack, PlannedPack(experiments=(changed, *other.experiments[1:]))]
    assert balance_packs(uneven, num_at_once=2) is None


def test_where_packs_wait_for_a_worker_nothing_is_moved():
    given = form_packs(experiments(5, max_arms_per_pack=2), num_at_once=2)
    assert len(given) == 3
    assert balance_packs(given, num_at_once=2) is None


def finished(given: Sequence[PlannedPack], change: Balance | None, *, work: Mapping[str, ArmWork]) -> float:
    """The work after which the last of two workers finishes, the first of which takes over the other's last arm."""

    def train(arms: Sequence[Experiment], *, start: float, stop: float) -> float:
        return sum(work[arm.id].training for arm in arms) * (stop - start)

    def score(arms: Sequence[Experiment]) -> float:
        return sum(work[arm.id].scoring for arm in arms)

    both = [pack.experiments for pack in given]
    begin = [sum(work[arm.id].measuring for arm in arms) for arms in both]
    if change is None:
        return max(
            first + train(arms, start=0, stop=1) + score(arms)
            for first, arms in zip(begin, both, strict=True)
        )
    pauses = [change.pause_at.get(arms[0].id, 1.0) for arms in both]
    paused = [
        first + train(arms, start=0, stop=pause)
        for first, arms, pause in zip(begin, both, pauses, strict=True)
    ]
    moved = [arm for arm in both[1] if arm.id in change.alone]
    kept = [arm for arm in both[1] if arm.id not in change.alone]
    rest = [
        train(both[0], start=pauses[0], stop=1) + score(both[0]) + train(moved, start=pauses[1], stop=1) + score(moved),
        train(kept, start=pauses[1], stop=1) + score(kept),
    ]  # fmt: skip
    return max(paused) + max(rest)


def works(given: Sequence[PlannedPack], *values: ArmWork) -> dict[str, ArmWork]:
    arms = [arm for pack in given for arm in pack.experiments]
    return {arm.id: work for arm, work in zip(arms, values, strict=True)}


def test_a_worker_that_scores_one_arm_more_trains_less():
    """Scoring takes a quarter of an arm's training. Large packs pause at p, the small one after 3 p / 2.

    From there on one worker has 2 (1 - 3 p / 2) + 1 - p + 3/4 and the other 2 (1 - p) + 2/4, equal for p = 5/8 and 15/16.
    """
    given = packs(5, workers=2)
    work = works(given, *[ArmWork(training=4, scoring=1)] * 5)
    change = balance_packs(given, num_at_once=2, work_of=lambda _: work)
    assert sorted(set(change.pause_at.values())) == [0.625, 0.9375]
    # 3 x 5/8 + 2 x 3/8 + 2/4 = 3.125 trainings; by equal shares of training it is 1.5 + 1 + 3/4 = 3.25.
    assert finished(given, change, work=work) == pytest.approx(4 * 3.125)
    assert finished(given, balance_packs(given, num_at_once=2), work=work) == pytest.approx(4 * 3.25)


def test_no_pack_pauses_after_its_end():
    """Of three arms the small pack is one arm. It would have to train more than all of it.

    It pauses at its last step: if it went on, the other worker would wait until it has scored its arm.
    """
    given = packs(3, workers=2)
    work = works(given, *[ArmWork(training=4, scoring=1)] * 3)
    change = balance_packs(given, num_at_once=2, work_of=lambda _: work)
    alone, *pair = [arm for pack in given for arm in pack.experiments]
    assert change.pause_at == {alone.id: 839 / 840} | {arm.id: 0.5 for arm in pair}
    assert rung_step(change.pause_at[alone.id], num_steps=20) == 20
    work = works(given, *[ArmWork()] * 3)
    change = balance_packs(given, num_at_once=2, work_of=lambda _: work)
    assert change.pause_at == {arm.id: 0.5 for arm in pair}


def test_arms_are_balanced_only_where_that_saves_enough():
    """What is left to balance is small against the scoring, which one worker does for three arms at any rate."""
    given = packs(5, workers=2)
    work = works(given, *[ArmWork(training=1, scoring=100)] * 5)
    assert balance_packs(given, num_at_once=2, work_of=lambda _: work) is None


def test_packs_pause_no_earlier_than_the_slowest_has_measured():
    """The best time to pause would be at once, since scoring holds one worker up to the end. The other still measures."""
    given = packs(5, workers=2)
    values = [ArmWork(training=500), ArmWork(measuring=3, training=500), ArmWork(training=500)]
    work = works(given, *values, ArmWork(training=702, scoring=300), ArmWork(training=500))
    change = balance_packs(given, num_at_once=2, work_of=lambda _: work)
    assert change is not None
    assert 0 < min(change.pause_at.values()) < 1 / 100
    # The worker that keeps two of the three arms trains 1,202 and scores 300. The arm given away trains 2/840 with them.
    assert finished(given, change, work=work) == pytest.approx(1502 + 500 * 2 / 840)


@for_all(
    st.lists(
        st.builds(
            ArmWork,
            measuring=st.integers(0, 100),
            training=st.integers(500, 1000),
            scoring=st.integers(0, 300),
        ),
        min_size=5,
        max_size=5,
    )
)
def test_no_worker_finishes_later_than_with_equal_shares(values):
    given = packs(5, workers=2)
    work = works(given, *values)
    change = balance_packs(given, num_at_once=2, work_of=lambda _: work)
    all_training = sum(arm.training for arm in values)
    equal_shares = balance_packs(given, num_at_once=2)
    at_most = min(
        finished(given, equal_shares, work=work),
        finished(given, None, work=work),
    )
    # Shares are multiples of 1/840, and less than a twentieth is not worth a pause.
    assert finished(given, change, work=work) <= at_most + all_training / 840 + (
        finished(given, None, work=work) / 20 if change is None else 0
    )


def test_the_work_of_an_arm_is_what_is_multiplied():
    arm = experiments(1, gradient_accumulation_steps=2)[0]
    splits = [("train", 9999), ("eval", 300), ("forgetting", 100)]
    estimate = SimpleNamespace(
        rows=SimpleNamespace(num_steps=20, mean_tokens_per_step=55.0, batch=SimpleNamespace(num_tokens=40)),
        num_trainable={arm.id: 7},
    )
    estimator: Any = SimpleNamespace(
        estimate=lambda _: estimate,
        shape=SimpleNamespace(num_parameters=1000 + 32 * 5, vocab_size=32, hidden_size=5),
        rows_read=[
            SimpleNamespace(summary=SimpleNamespace(split=split, num_tokens=tokens))
            for split, tokens in splits
        ],
        settings=arm.settings,
    )
    # Two micro-batches of 40 tokens; 20 steps of 55 tokens; 400 scored tokens.
    a_token = 2 * 1000 + 3 * 7
    assert Predictions(estimators={arm.pack_key: estimator}).work([arm]) == {
        arm.id: ArmWork(measuring=80 * a_token, training=1100 * a_token, scoring=400 * 1007)
    }
    # Where one arm's work is not known, all count as equal.
    other = experiments(1, per_device_train_batch_size=8)[0]
    assert Predictions(estimators={arm.pack_key: estimator}).work([arm, other]) == {}
