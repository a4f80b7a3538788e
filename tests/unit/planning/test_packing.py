"""Whatever is asked for, every experiment is in one pack, with its like, and no pack is too large."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorastudy.planning.packing import MAX_PACK_TOKENS, PlannedPack, form_packs, halves, max_arms
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings


def experiment(**values: object) -> Experiment:
    seed = values.pop("seed", 0)
    base_model = values.pop("base_model", "lab")
    settings = Settings.model_validate({"base_model": base_model, **values})
    assert isinstance(seed, int)
    return Experiment(
        name="e", arm="e", experiment_type="custom", seed=seed, settings=settings,
        sources=Sources(base_model=str(base_model), dataset="rows"),
    )  # fmt: skip


EXPERIMENTS = st.lists(
    st.builds(
        experiment,
        seed=st.integers(0, 5),
        lora_rank=st.integers(1, 8),
        base_model=st.sampled_from(["lab", "other"]),
        quantization=st.sampled_from(["fp32", "bf16"]),
        per_device_train_batch_size=st.sampled_from([1, 8]),
        max_arms_per_pack=st.sampled_from([None, 1, 3]),
        max_seq_length=st.sampled_from([512, 1024]),
    ),
    max_size=40,
    unique_by=lambda each: each.id,
)


@given(experiments=EXPERIMENTS)
def test_every_experiment_is_in_one_pack_with_its_like(experiments: list[Experiment]) -> None:
    packs = form_packs(experiments)
    packed = Counter(each.id for pack in packs for each in pack.experiments)
    assert packed == Counter(each.id for each in experiments)
    for pack in packs:
        assert len({each.pack_key for each in pack.experiments}) == 1
        assert 1 <= len(pack.experiments) <= max_arms(pack.experiments[0])


@given(experiments=EXPERIMENTS)
def test_packs_of_a_group_differ_by_one_arm_at_most(experiments: list[Experiment]) -> None:
    sizes: dict[str, set[int]] = {}
    for pack in form_packs(experiments):
        sizes.setdefault(pack.experiments[0].pack_key, set()).add(len(pack.experiments))
    assert all(max(group) - min(group) <= 1 for group in sizes.values())


@given(experiments=EXPERIMENTS)
def test_order_is_kept_within_a_group(experiments: list[Experiment]) -> None:
    packs = form_packs(experiments)
    for key in {each.pack_key for each in experiments}:
        asked = [each.id for each in experiments if each.pack_key == key]
        planned = [each.id for pack in packs for each in pack.experiments if each.pack_key == key]
        assert planned == asked


def test_what_an_arm_may_differ_in_does_not_part_it_from_others() -> None:
    arms = [
        experiment(lora_rank=1, learning_rate=1e-3),
        experiment(lora_rank=64, learning_rate=1e-4),
        experiment(target_modules="mlp", lora_dropout=0.1),
    ]
    assert len(form_packs(arms)) == 1
    assert len(form_packs([*arms, experiment(data_seed=1)])) == 1
    assert len(form_packs([*arms, experiment(max_seq_length=64)])) == 2


def test_a_seed_draws_the_order_of_the_rows_unless_one_order_is_fixed_and_orders_train_together() -> None:
    assert len(form_packs([experiment(seed=seed) for seed in range(3)])) == 1
    assert len(form_packs([experiment(seed=seed, data_seed=7) for seed in range(3)])) == 1
    assert experiment(seed=5).data_seed == 5
    assert experiment(seed=5, data_seed=7).data_seed == 7


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"max_seq_length": 512, "per_device_train_batch_size": 4}, MAX_PACK_TOKENS // 2048),
        ({"max_seq_length": MAX_PACK_TOKENS, "per_device_train_batch_size": 4}, 1),  # one arm always has room
        ({"max_arms_per_pack": 5}, 5),
    ],
)
def test_bound(values: dict[str, object], expected: int) -> None:
    assert max_arms(experiment(**values)) == expected


@given(count=st.integers(0, 9))
def test_halves_hold_all_and_get_smaller(count: int) -> None:
    arms = [experiment(seed=seed) for seed in range(count)]
    parts = halves(arms)
    assert [each for part in parts for each in part.experiments] == arms
    assert all(part.experiments for part in parts)
    if count > 1:
        assert all(len(part.experiments) < count for part in parts)


def test_a_pack_is_named_after_what_is_in_it_and_not_after_the_order() -> None:
    one, other = experiment(seed=0), experiment(seed=1)
    assert PlannedPack(experiments=(one, other)).id == PlannedPack(experiments=(other, one)).id
    assert PlannedPack(experiments=(one,)).id != PlannedPack(experiments=(other,)).id


def test_packs_served_side_by_side_leave_nobody_idle() -> None:
    experiments = [experiment(lora_rank=rank) for rank in range(1, 6)]
    assert [len(pack.experiments) for pack in form_packs(experiments)] == [5]
    assert [len(pack.experiments) for pack in form_packs(experiments, num_at_once=2)] == [2, 3]
    assert [len(pack.experiments) for pack in form_packs(experiments, num_at_once=9)] == [1] * 5


@pytest.mark.parametrize(
    ("num_groups", "num_at_once", "expected"),
    [(6, 2, [5] * 6), (3, 2, [2, 3] * 3), (1, 2, [2, 3]), (6, 4, [2, 3] * 6), (4, 2, [5] * 4)],
)
def test_every_worker_gets_as_many_packs_as_the_others(num_groups, num_at_once, expected) -> None:
    experiments = [
        experiment(max_seq_length=100 + group, lora_rank=rank)
        for group in range(num_groups)
        for rank in range(1, 6)
    ]
    packs = form_packs(experiments, num_at_once=num_at_once)
    assert [len(pack.experiments) for pack in packs] == expected
    assert len(packs) % num_at_once == 0
