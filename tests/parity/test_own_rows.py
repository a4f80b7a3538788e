"""Arms with rows of their own in one pack: each arm's result equals the one that it gets alone, in both engines."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch

import tiny
from benchmarks.families import FAMILIES, ROW_LENGTHS, base_of, make_arm, make_model, make_rows
from lorastudy.engine import adapter_buffers
from lorastudy.engine.batch import ArmBatches, Batch, assemble
from lorastudy.engine.packed import PackedEngine
from lorastudy.engine.reference import ReferenceEngine
from lorastudy.errors import ModelError
from lorastudy.suite.targets import resolve_targets

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_STEPS = 5


def five_arms(base, *, dropout=0.0):
    """Two arms of one shape and stream, two of one shape and different streams, one of another shape."""
    attention, everything = tiny.targets(base, "qkvo"), tiny.targets(base, "all")
    arms = [
        tiny.make_arm(attention, name="a", lora_dropout=dropout),
        tiny.make_arm(attention, name="b", learning_rate=1e-3, seed=1, lora_dropout=dropout),
        tiny.make_arm(attention, name="c", seed=2, max_grad_norm=0.3, lora_dropout=dropout),
        tiny.make_arm(everything, name="d", r=8, seed=3, lora_dropout=dropout),
        tiny.make_arm(everything, name="e", r=8, seed=4, weight_decay=0.1),
    ]
    return [replace(arm, num_steps=NUM_STEPS, num_warmup_steps=0) for arm in arms]


def own_steps() -> dict[str, list[list[Batch]]]:
    """The steps of each arm: a and b share theirs, the others have other rows, batch sizes and accumulations."""
    shared = tiny.make_steps(NUM_STEPS, seed=1)
    return {
        "a": shared,
        "b": shared,
        "c": tiny.make_steps(NUM_STEPS, seed=2, batch_size=2, accumulation=3),
        "d": tiny.make_steps(NUM_STEPS, seed=3, batch_size=5),
        "e": tiny.make_steps(NUM_STEPS, seed=4, accumulation=2),
    }


def together(
    steps: Mapping[str, Sequence[Sequence[Batch]]], num_steps: Mapping[str, int] | None = None
) -> list[list[ArmBatches]]:
    """The steps of all arms, micro-batch by micro-batch. An arm that has ended has no rows."""
    lengths = num_steps or dict.fromkeys(steps, NUM_STEPS)
    taken: list[list[ArmBatches]] = []
    for number in range(max(lengths.values())):
        own = {name: steps[name][number] for name in steps if number < lengths[name]}
        taken.append(
            [
                ArmBatches(by_arm={name: step[place] for name, step in own.items() if place < len(step)})
                for place in range(max(map(len, own.values())))
            ]
        )
    return taken


@pytest.fixture(params=[False, True], ids=["views", "padded"])
def layout(request, monkeypatch):
    """Spans as views, as on a CPU, and padded, as on a GPU."""
    monkeypatch.setattr(adapter_buffers, "pads_ranks", lambda _: request.param)


#: `make test` takes the padded layout, `make slow` both.
PADDED = pytest.mark.parametrize(
    "layout", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["padded", "views"], indirect=True
)


def compared(base, arms, *, folder, tolerances=(1e-6, 1e-6), **options):
    """Train all arms together, and each alone in both engines; compare losses and adapters."""
    steps = own_steps()
    log, adapters = tiny.train(
        PackedEngine, base, arms, steps=together(steps), folder=folder / "all", **options
    )
    for engine in (PackedEngine, ReferenceEngine):
        if engine is ReferenceEngine and any(arm.lora_dropout for arm in arms):
            continue  # PEFT draws its masks from another stream
        for arm in arms:
            name = arm.experiment_id
            alone = tiny.train(engine, base, [arm], steps=steps[name], folder=folder / name, **options)
            own = 1 if engine is PackedEngine else 10
            assert tiny.largest_relative(log.losses[name], alone[0].losses[name]) <= own * tolerances[0]
            assert tiny.largest_difference(adapters[name], alone[1][name]) <= own * tolerances[1]
    return log


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi"])
def test_each_arm_equals_the_arm_alone_and_pefts(architecture, tmp_path):
    base = tiny.make_base(architecture)
    log = compared(base, five_arms(base), folder=tmp_path)
    assert {name: len(losses) for name, losses in log.losses.items()} == dict.fromkeys("abcde", NUM_STEPS)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_dropout_masks_do_not_depend_on_the_pack(tmp_path, gradient_checkpointing):
    base = tiny.make_base()
    arms = five_arms(base, dropout=0.3)
    compared(base, arms, folder=tmp_path, gradient_checkpointing=gradient_checkpointing)


@PADDED
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-3), (torch.float16, 1e-3)])
def test_half_precision_stays_as_close_as_alone(layout, tmp_path, dtype, tolerance):
    base = tiny.make_base(dtype=dtype)
    compared(base, five_arms(base), folder=tmp_path, tolerances=(tolerance, tolerance))


@pytest.mark.parametrize("make_engine", [PackedEngine, ReferenceEngine])
def test_both_engines_take_the_same_steps_and_count_the_tokens_of_each_arm(make_engine):
    base, steps, results = tiny.make_base(), own_steps(), []
    lengths = {"a": 5, "b": 5, "c": 2, "d": 4, "e": 3}
    arms = [replace(arm, num_steps=lengths[arm.experiment_id]) for arm in five_arms(base)]
    with tiny.opened(make_engine(base, arms)) as engine:
        engine.train(together(steps, lengths), on_step=results.append)
    for name, length in lengths.items():
        assert sum(arm.experiment_id == name for result in results for arm in result.arms) == length
    own = {
        name: [batch for step in steps[name][:length] for batch in step] for name, length in lengths.items()
    }
    for counted in ("num_tokens", "num_completion_tokens"):
        assert sum(getattr(result, counted) for result in results) == sum(
            getattr(batch, counted) for batches in own.values() for batch in batches
        )


@PADDED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_arm_that_diverges_leaves_the_others_to_the_bit(layout, tmp_path, dtype):
    base, steps = tiny.make_base(dtype=dtype), together(own_steps())
    arms = five_arms(base)
    calm = tiny.train(PackedEngine, base, arms, steps=steps, folder=tmp_path)
    for number in (0, 2, 4):
        wild = [replace(arm, learning_rate=1e30) if arm is arms[number] else arm for arm in arms]
        log, adapters = tiny.train(PackedEngine, base, wild, steps=steps, folder=tmp_path)
        if dtype is torch.float32:
            assert log.diverged == {arms[number].experiment_id: 2}
        for arm in (arm for arm in arms if arm is not arms[number]):
            name = arm.experiment_id
            assert log.losses[name] == calm[0].losses[name]
            assert log.norms[name] == calm[0].norms[name]
            assert tiny.largest_difference(adapters[name], calm[1][name]) == 0


@pytest.mark.parametrize("num_told", [1, 3])
def test_a_restored_engine_goes_on_to_the_very_same_bits(tmp_path, num_told):
    base, steps = tiny.make_base(), together(own_steps())
    arms = five_arms(base, dropout=0.3)
    whole = tiny.train(PackedEngine, base, arms, steps=steps, folder=tmp_path)
    with tiny.opened(PackedEngine(base, arms)) as engine:
        engine.train(steps[:num_told], on_step=lambda _: None)
        state = engine.state()
    log = tiny.Log()
    with tiny.opened(PackedEngine(base, arms)) as engine:
        engine.restore(state)
        engine.train(steps[num_told:], on_step=log)
        adapters = tiny.adapters_of(engine, tmp_path)
    for name in "abcde":
        assert log.losses[name] == whole[0].losses[name][num_told:]
        assert tiny.largest_difference(adapters[name], whole[1][name]) == 0


def test_rows_that_all_arms_share_give_the_same_numbers_in_both_layouts(tmp_path):
    """One batch for all is (K, N); the same batch as each arm's own is (1, T)."""
    base, arms = tiny.make_base(), five_arms(tiny.make_base())
    shared = tiny.make_steps(NUM_STEPS, seed=7)
    one = tiny.train(PackedEngine, base, arms, steps=shared, folder=tmp_path)
    other = tiny.train(
        PackedEngine, base, arms, steps=together(dict.fromkeys("abcde", shared)), folder=tmp_path
    )
    for name in "abcde":
        assert tiny.largest_relative(one[0].losses[name], other[0].losses[name]) <= 1e-6
        assert tiny.largest_difference(one[1][name], other[1][name]) <= 1e-6


def packed_engine(base, names):
    """A packed engine with an arm for each name, on all modules, or on attention alone where the rest are experts."""
    for preset in ("all", "qkvo"):
        modules = resolve_targets(base.target_layers, target_modules=preset, layers_to_transform=None)
        if not any(base.targets_by_name[module].is_parameter for module in modules):
            break
    arms = [replace(make_arm(modules), experiment_id=name, seed=place) for place, name in enumerate(names)]
    return PackedEngine(base, arms, longest_row=max(ROW_LENGTHS)), arms


#: One of each kind that differs here; `make slow` takes the others.
REPRESENTATIVES = {"llama", "gpt2", "opt", "mixtral", "deepseek_v2", "ctrl"}


@pytest.mark.parametrize(
    "family",
    [name if name in REPRESENTATIVES else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_in_every_family_that_packs_serve(family):
    """Three steps of three arms, whose rows differ in their tokens and their number."""
    base = base_of(make_model(family), name=family)
    steps = {
        "one": [[assemble(make_rows(1), device=tiny.CPU)]] * 3,
        "two": [[assemble(make_rows(2)[:2], device=tiny.CPU)]] * 3,
        "three": [[assemble(make_rows(3)[1:], device=tiny.CPU)]] * 3,
    }
    try:
        engine, arms = packed_engine(base, steps)
    except ModelError as error:
        pytest.skip(f"the reference engine trains it, arm by arm: {error}")
    log, alone = tiny.Log(), tiny.Log()
    with tiny.opened(engine):
        engine.train(together(steps, dict.fromkeys(steps, 3)), on_step=log)
    for arm in arms:
        with tiny.opened(PackedEngine(base, [arm])) as engine:
            engine.train(steps[arm.experiment_id], on_step=alone)
        name = arm.experiment_id
        assert tiny.largest_relative(log.losses[name], alone.losses[name]) <= 1e-4
        assert tiny.largest_relative(log.norms[name], alone.norms[name]) <= 1e-3
