"""Packs that are uneven become even by a pause: checked by adding up what each worker trains."""

from collections.abc import Sequence

import pytest

from lorastudy.executors.multi_worker import shares
from lorastudy.planning.packing import Balance, PlannedPack, balance_packs, form_packs
from lorastudy.protocol.records import Pack
from lorastudy.suite.experiment import Experiment, Sources
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
