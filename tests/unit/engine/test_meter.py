import itertools
import statistics
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

import tiny
from lorastudy.engine import meter
from lorastudy.engine.loading import load_base
from lorastudy.engine.meter import (
    MemoryMeter,
    has_time_for_rounds,
    num_parameters,
    profile_arms,
    shares_apart,
    time_shapes,
)
from lorastudy.engine.self_check import ROW_LENGTHS
from lorastudy.suite.settings import Settings

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]

MIB = 1 << 20


def hold_and_release():
    """3 MiB held, then 2 more for a moment, then 1 more: at most 5."""
    kept = torch.zeros(3 * MIB, dtype=torch.uint8)
    brief = torch.zeros(2 * MIB, dtype=torch.uint8)
    del brief
    last = torch.zeros(MIB, dtype=torch.uint8)
    return kept, last


def test_peak_growth_is_the_most_that_was_held_at_once():
    assert meter.peak_growth(hold_and_release) == pytest.approx(5 * MIB, rel=1e-3)


def test_memory_freed_and_taken_again_is_not_counted_twice():
    def action():
        for _ in range(3):
            hold_and_release()

    assert meter.peak_growth(action) == pytest.approx(5 * MIB, rel=1e-3)


def test_scratch_of_a_product_counts_only_where_it_is_asked_for():
    """The product of two bf16 matrices holds its result, of 256 x 512 numbers. Only its kernel knows what it takes besides."""
    left, right = torch.ones(256, 384, dtype=torch.bfloat16), torch.ones(384, 512, dtype=torch.bfloat16)

    def multiply():
        return left @ right

    result = 256 * 512 * 2
    assert meter.peak_growth(multiply, with_scratch=False) == result
    assert meter.peak_growth(multiply) >= result


def test_what_stays_of_a_product_is_no_scratch():
    kept = []
    ones = torch.ones(64, 64)
    assert (
        meter.peak_growth(lambda: kept.extend([ones @ ones, ones @ ones]), with_scratch=False)
        == 2 * 64 * 64 * 4
    )


def test_live_bytes_count_a_shared_storage_once():
    before = meter.live_bytes()
    tensor = torch.zeros(MIB, dtype=torch.float32)
    views = [tensor[:10], tensor.view(-1, 2), tensor.detach()]
    assert meter.live_bytes() - before == 4 * MIB
    del tensor, views
    assert meter.live_bytes() == before


def test_a_training_step_peaks_at_base_adapters_optimizer_and_activations():
    """Lower bound by hand: base, and four fp32 numbers for each adapter weight (weight, gradient, two moments)."""
    base = tiny.make_base()
    arms = [tiny.make_arm(tiny.targets(base, "all"), name=str(r), r=r) for r in (1, 64)]
    (batches,) = tiny.make_steps(1)
    machine = Machine()
    small, large = profile_arms(
        Counted(base, machine), arms, base=base, largest=batches, typical=batches, clock=machine
    )
    base_bytes = 4 * num_parameters(base)
    assert small.memory_kind == "cpu_tensors"
    assert small.peak_memory_bytes > base_bytes + 16 * small.num_trainable_parameters
    difference = large.num_trainable_parameters - small.num_trainable_parameters
    grown = large.peak_memory_bytes - small.peak_memory_bytes
    assert 16 * difference < grown < 32 * difference


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can begin a peak anew")
def test_the_resident_peak_is_that_of_the_block_and_not_of_the_process():
    def take(mib):
        torch.ones(mib << 20, dtype=torch.uint8)

    take(300)
    readings = []
    for mib in (1, 100):
        with MemoryMeter(tiny.CPU) as memory:
            take(mib)
        readings.append(memory.peak_bytes)
    assert memory.kind == "cpu_resident"
    assert readings[1] - readings[0] == pytest.approx(99 * MIB, abs=10 * MIB)


class Machine:
    """A clock by which the script says how long each step takes."""

    def __init__(self, seconds=None):
        self.now, self.seconds = 0.0, iter(seconds or itertools.repeat(0.03125))

    def __call__(self):
        return self.now

    def step(self):
        taken = next(self.seconds)
        self.now += taken
        return taken


class Counted:
    """An engine factory that counts, on a machine whose steps take what its script says."""

    def __init__(self, base, machine):
        self.base, self.machine, self.opened = base, machine, []

    def __call__(self, arms):
        self.opened += [arm.experiment_id for arm in arms]
        machine = self.machine

        class Scripted(tiny.PackedEngine):
            def train(self, steps, *, on_step):
                def scripted(result):
                    machine.step()
                    on_step(result)

                super().train(steps, on_step=scripted)

        return Scripted(self.base, arms)


def test_arms_of_one_shape_are_measured_once():
    base = tiny.make_base()
    attention, mlp = tiny.targets(base, "qkvo"), tiny.targets(base, "mlp")
    first = tiny.make_arm(attention, name="first")
    twins = [replace(first, experiment_id=f"twin{seed}", seed=seed, learning_rate=1e-5) for seed in (1, 2)]
    other = [tiny.make_arm(mlp, name="mlp"), replace(first, experiment_id="dropout", lora_dropout=0.1)]
    machine = Machine()
    factory = Counted(base, machine)
    (batches,) = tiny.make_steps(1)
    arms = [first, *twins, *other]
    profiles = list(profile_arms(factory, arms, base=base, largest=batches, typical=batches, clock=machine))
    assert [profile.experiment_id for profile in profiles] == [arm.experiment_id for arm in arms]
    # Memory once, one step that is not timed, and three rounds there and back.
    memory, untimed, rounds = factory.opened[:3], factory.opened[3], factory.opened[4:]
    assert sorted(memory) == ["dropout", "first", "mlp"]
    assert untimed == "first"
    one_round = rounds[:6]
    assert sorted(one_round[:3]) == sorted(memory)
    assert one_round == one_round[::-1]
    assert rounds == 3 * one_round
    assert replace(profiles[1], experiment_id="first") == profiles[0]
    assert profiles[3].peak_memory_bytes != profiles[0].peak_memory_bytes
    assert {profile.step_seconds for profile in profiles} == {0.03125}
    assert {profile.num_timed_steps for profile in profiles} == {6}


def test_an_arm_that_will_diverge_at_once_is_measured_like_any_other_of_its_shape():
    base = tiny.make_base()
    calm = tiny.make_arm(tiny.targets(base, "qkvo"), name="calm")
    wild = replace(calm, experiment_id="wild", learning_rate=9.0, lora_alpha=1e30, scaling=1e30)
    (batches,) = tiny.make_steps(1)

    def measured(arm):
        machine = Machine()
        factory = Counted(base, machine)
        return next(profile_arms(factory, [arm], base=base, largest=batches, typical=batches, clock=machine))

    assert replace(measured(wild), experiment_id="calm") == measured(calm)


@pytest.mark.parametrize("make_engine", tiny.ENGINES.values(), ids=tiny.ENGINES)
@pytest.mark.parametrize(
    ("name", "options"),
    [("polynomial", ()), ("cosine_with_min_lr", (("min_lr", 1e-5),)), ("warmup_stable_decay", (("num_decay_steps", 1),))],
)  # fmt: skip
def test_an_arm_whose_rate_falls_to_one_above_zero_is_measured(make_engine, name, options):
    base = tiny.make_base()
    arm = tiny.make_arm(tiny.targets(base, "q"), lr_scheduler_type=name, lr_scheduler_kwargs=options)
    (batches,) = tiny.make_steps(1)
    (profile,) = profile_arms(
        lambda arms: make_engine(base, arms), [arm], base=base, largest=batches, typical=batches
    )
    assert profile.peak_memory_bytes is not None


def scripted_times(seconds, num_steps=1):
    """`time_shapes` of the shapes "a", "b" ..., whose steps take what `seconds(shape, visit, now)` says."""
    machine, visits, order = Machine(), Counter(), []

    def time_step(shape):
        machine.seconds = iter([seconds(shape, visits[shape], machine.now)])
        visits[shape] += 1
        order.append(shape)
        return machine.step()

    return time_shapes(time_step, dict.fromkeys("abc", num_steps), clock=machine), order


def test_shapes_take_turns_there_and_back_until_each_agrees_with_itself():
    times, order = scripted_times(lambda shape, *_: {"a": 0.125, "b": 0.0625, "c": 0.03125}[shape])
    assert "".join(order) == 3 * "abccba"
    assert {shape: timed.all for shape, timed in times.items()} == {
        "a": [0.125] * 6,
        "b": [0.0625] * 6,
        "c": [0.03125] * 6,
    }
    assert [timed.apart for timed in times.values()] == [0.0] * 3


def test_a_shape_whose_two_measurements_differ_is_measured_again_with_all_others():
    """The first measurement of b is disturbed in three of its first rounds; with seven its median is the common one."""

    def seconds(shape, visit, _):
        return 0.016 if shape == "b" and visit in {0, 2, 4} else 0.008

    times, order = scripted_times(seconds)
    # After 3, 4 and 5 rounds the median of b's first measurement is .016, .016 and .016; after 6 it is .012; after 7 .008.
    assert order == list(7 * "abccba")
    assert times["b"].apart == 0.0
    assert times["b"].firsts == [0.016] * 3 + [0.008] * 4


def test_measurements_that_never_agree_end_with_the_rounds():
    """b's second measurement takes 6 % more than its first, each time."""
    times, order = scripted_times(
        lambda shape, visit, _: 0.00106 if (shape, visit % 2) == ("b", 1) else 0.001
    )
    assert len(order) == 6 * meter.MAX_ROUNDS
    assert times["b"].apart == pytest.approx(0.06)
    assert times["a"].apart == 0.0


def noisy(shape, visit, now):
    """Steps of a second; every other one of each takes half a second more."""
    return 1.0 + 0.5 * (visit % 2)


@pytest.mark.parametrize(
    ("num_steps", "num_rounds"),
    [
        # A round of 7.5 s: the least limit, 2 s, has no room for a second one.
        (1, 1),
        # 3 shapes x 500 steps x 1.25 s = 1,875 s; 2 % are 37.5 s, so five rounds.
        (500, 5),
        # 2 % of 1e6 steps are more than ten minutes, which have room for more than 15 rounds.
        (1_000_000, meter.MAX_ROUNDS),
    ],
)
def test_timing_takes_a_small_share_of_training(num_steps, num_rounds):
    _, order = scripted_times(noisy, num_steps)
    assert len(order) == 6 * num_rounds


def test_timing_never_takes_more_than_ten_minutes():
    """A round takes 750 s, and 2 % of training are days."""
    _, order = scripted_times(lambda *where: 100 * noisy(*where), 1_000_000)
    assert len(order) == 6


def test_a_machine_that_slows_down_slows_all_shapes_and_both_measurements():
    """One step takes a tenth longer at the end than at the beginning; all shapes are equal."""
    times, _ = scripted_times(lambda _shape, _visit, now: 0.01 * (1 + now / 2))
    medians = [statistics.median(timed.all) for timed in times.values()]
    assert max(medians) / min(medians) < 1.01
    assert max(timed.apart for timed in times.values()) < meter.STEP_TIME_FLOOR


def test_one_that_agrees_where_most_do_not_agrees_by_luck():
    """Second measurements take 10 % and 20 % more for b and c, and none for a: the middle one differs by 10 %."""
    more = {"a": 1.0, "b": 1.1, "c": 1.2}
    times, _ = scripted_times(lambda shape, visit, _: 0.001 * (more[shape] if visit % 2 else 1.0))
    assert shares_apart(times) == pytest.approx({"a": 0.1, "b": 0.1, "c": 0.2})
    # Where most agree the others' noise is no reason to doubt them.
    more |= {"b": 1.01}
    times, _ = scripted_times(lambda shape, visit, _: 0.001 * (more[shape] if visit % 2 else 1.0))
    assert shares_apart(times) == pytest.approx({"a": 0.01, "b": 0.01, "c": 0.2})


def test_a_time_that_noise_hides_is_unknown_and_not_guessed():
    base = tiny.make_base()
    (batches,) = tiny.make_steps(1)
    arm = tiny.make_arm(tiny.targets(base, "q"))
    # Two steps an engine, of which the second is timed: .125 s and .25 s by turns. Two engines were opened before.
    machine = Machine(itertools.cycle([0.0, 0.125, 0.0, 0.25]))
    (profile,) = profile_arms(
        Counted(base, machine), [arm], base=base, largest=batches, typical=batches, clock=machine
    )
    assert profile.step_seconds is None
    assert profile.tokens_per_second is None
    assert profile.step_times_apart == 1.0
    # A round takes .375 s: after five of them a sixth would end beyond the limit of 2 s.
    assert profile.num_timed_steps == 10
    assert profile.step_quartile_distance_seconds == 0.125


@pytest.mark.parametrize(
    ("seconds", "num_rounds", "is_known"),
    [
        # One round is two engines of two steps. Of a second each, 4 s: the limit of 2 s has no room for another one.
        (1.0, 1, False),
        # Rounds of 1 s: after two of them a third would end beyond the limit.
        (0.25, 2, False),
        (0.125, 3, True),
    ],
)
def test_measurements_that_agree_in_too_few_rounds_give_no_time(seconds, num_rounds, is_known):
    base = tiny.make_base()
    (batches,) = tiny.make_steps(1)
    arm = tiny.make_arm(tiny.targets(base, "q"))
    # The step that measures memory promises time for three rounds.
    machine = Machine(itertools.chain([0.0, min(seconds, 0.25)], itertools.repeat(seconds)))
    (profile,) = profile_arms(
        Counted(base, machine), [arm], base=base, largest=batches, typical=batches, clock=machine
    )
    assert profile.num_timed_steps == 2 * num_rounds
    assert profile.step_times_apart == 0.0
    assert profile.step_seconds == (seconds if is_known else None)
    assert (profile.tokens_per_second is not None) == is_known


def test_no_step_is_timed_where_there_is_no_time_for_enough_rounds():
    """Three rounds of one shape are six steps. The limit is 2 s here."""
    base = tiny.make_base()
    (large,), (small,) = tiny.make_steps(1, batch_size=8), tiny.make_steps(1, batch_size=1)
    share = small[0].num_tokens / large[0].num_tokens
    arm = tiny.make_arm(tiny.targets(base, "q"))

    def measured(seconds):
        factory = Counted(base, Machine(itertools.repeat(seconds)))
        (profile,) = profile_arms(
            factory, [arm], base=base, largest=large, typical=small, clock=factory.machine
        )
        return profile, len(factory.opened)

    profile, num_engines = measured(2.1 / 6 / share)
    assert num_engines == 1
    assert profile.peak_memory_bytes > 0
    assert (profile.step_seconds, profile.tokens_per_second) == (None, None)
    assert (profile.num_timed_steps, profile.step_times_apart) == (None, None)
    assert profile.step_quartile_distance_seconds is None
    # A typical step is expected to take its share of the largest one.
    profile, num_engines = measured(1.9 / 6 / share)
    assert num_engines > 2
    assert profile.num_timed_steps > 0


def test_the_time_for_rounds_grows_with_training():
    """Two shapes of 1 s and 2 s: three rounds take 18 s, which are 2 % of 900 s, so of 300 steps of each."""
    expected = {"a": 1.0, "b": 2.0}
    assert has_time_for_rounds(dict.fromkeys("ab", 301), expected)
    assert not has_time_for_rounds(dict.fromkeys("ab", 299), expected)


def test_the_peak_is_that_of_the_largest_step_and_what_is_timed_is_the_typical_one():
    base, machine, trained = tiny.make_base(), Machine(), []

    class Watched(tiny.PackedEngine):
        def train(self, steps, *, on_step):
            trained.append([sum(batch.num_tokens for batch in batches) for batches in steps])
            super().train(steps, on_step=lambda result: (machine.step(), on_step(result)))

    arm = tiny.make_arm(tiny.targets(base, "q"))
    (largest,), (typical,) = tiny.make_steps(1, batch_size=8), tiny.make_steps(1, seed=1)
    (profile,) = profile_arms(
        lambda arms: Watched(base, arms), [arm], base=base, largest=largest, typical=typical, clock=machine
    )
    num_largest, num_typical = largest[0].num_tokens, typical[0].num_tokens
    few = sum(ROW_LENGTHS)
    assert trained == [[few, num_largest]] + [[few, num_typical]] * 7
    engine = tiny.PackedEngine(base, [replace(arm, num_steps=2)])
    with tiny.opened(engine):
        before = meter.live_bytes()
        growth = meter.peak_growth(lambda: engine.train([largest, largest], on_step=lambda _: None))
    assert profile.peak_memory_bytes == pytest.approx(before + growth, rel=0.01)


def test_speed_counts_real_tokens_and_the_adapter_its_file(tmp_path):
    base = tiny.make_base()
    arm = tiny.make_arm(tiny.targets(base, "q"), r=3)
    (batches,) = tiny.make_steps(1, accumulation=2)
    machine = Machine()
    (profile,) = profile_arms(
        Counted(base, machine), [arm], base=base, largest=batches, typical=batches, clock=machine
    )
    num_tokens = sum(batch.num_tokens for batch in batches)
    assert profile.tokens_per_second * profile.step_seconds == pytest.approx(num_tokens)
    # Two layers of q_proj, 48 to 48: r * (48 + 48) each.
    assert profile.num_trainable_parameters == 2 * 3 * 96
    assert profile.num_total_parameters == num_parameters(base) + 576
    with tiny.opened(tiny.PackedEngine(base, [arm])) as engine:
        assert profile.adapter_bytes == engine.save_adapter(arm, tmp_path)


@pytest.mark.parametrize("make_engine", tiny.ENGINES.values(), ids=tiny.ENGINES)
def test_the_optimizers_state_is_counted_beside_the_activations(make_engine):
    """Adapters large, activations small: (weight, gradient, two moments) are all there in the second step."""
    base = tiny.make_base()
    arm = tiny.make_arm(tiny.targets(base, "all"), r=256, num_steps=1)
    (profile,) = profile_arms(
        lambda arms: make_engine(base, arms), [arm], base=base, largest=tiny.make_steps(1)[0],
        typical=tiny.make_steps(1)[0],
    )  # fmt: skip
    assert profile.peak_memory_bytes > 4 * num_parameters(base) + 16 * profile.num_trainable_parameters


@pytest.mark.parametrize("quantization", ["fp32", "8bit", "4bit"])
def test_parameters_are_counted_as_what_they_stand_for(tmp_path, quantization):
    folder = tiny.save_base(tmp_path / "model")
    base = load_base(Settings(base_model=str(folder), quantization=quantization), device=tiny.CPU)
    # Embedding and head 128 * 64 each; a layer: q, o 64 * 64, k, v 64 * 32, MLP 3 * 64 * 128, two norms; a norm.
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
    assert num_parameters(base) == 2 * 128 * 64 + 2 * layer + 64


def test_a_tied_matrix_counts_once():
    base = tiny.make_base("gpt2")
    d = 48
    # Token and position embeddings; a layer: attention 4 d^2 + 4 d, MLP 8 d^2 + 5 d, two norms of 2 d; a norm.
    assert num_parameters(base) == (128 + 128) * d + 2 * (12 * d * d + 13 * d) + 2 * d


def test_the_meter_reads_after_the_block_only():
    memory = MemoryMeter(tiny.CPU)
    assert memory.peak_bytes is None
    with memory:
        assert memory.peak_bytes is None
    assert memory.peak_bytes > 0
