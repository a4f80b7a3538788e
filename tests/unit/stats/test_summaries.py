"""Spreads, frontier, rank's returns, module roles, curves, environments."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorastudy.analysis.overview import analyse
from lorastudy.protocol.records import ArmProfile
from lorastudy.report.findings.by_type import target_roles
from lorastudy.stats.frontier import pareto_frontier
from lorastudy.stats.study import comparable, environment_groups, split_studies
from lorastudy.stats.summary import EXACT_MATCH, LOSS, Spread, StepNoise, bin_width, mean_curve
from lorastudy.store.views import StepRow


def test_spread_by_hand():
    spread = Spread.of([1.0, None, 2.0, 6.0])
    # mean 9 / 3; squares of deviations 4 + 1 + 9 = 14, over n - 1 = 2
    assert (spread.n, spread.mean, spread.median) == (3, 3.0, 2.0)
    assert spread.sd == pytest.approx(math.sqrt(7))
    assert (spread.minimum, spread.maximum) == (1.0, 6.0)


def test_one_value_has_no_spread_and_none_is_absent():
    assert Spread.of([2.0]).sd is None
    assert Spread.of([None]) is None


def test_absent_metrics_and_costs_stay_absent(make_study):
    summary = analyse(make_study({"a": [1.0, 2.0]})).summaries[0]
    assert summary.score(LOSS).mean == 1.5
    assert summary.score(EXACT_MATCH) is None
    assert summary.costs.peak_memory_bytes is None


def timed(seconds, *, steps=4, distance=0.02, apart=0.01):
    return ArmProfile(
        experiment_id="e", num_trainable_parameters=1, num_total_parameters=2, adapter_bytes=3,
        memory_kind="cpu_tensors", peak_memory_bytes=4, step_seconds=seconds, tokens_per_second=None,
        num_timed_steps=steps, step_quartile_distance_seconds=distance, step_times_apart=apart,
    )  # fmt: skip


def test_the_error_of_a_median_follows_from_the_quartiles():
    """Quartiles of a normal lie 1.349 standard deviations apart; a median of 4 has an error of 1.2533 / sqrt(4) of one."""
    alone = StepNoise.of([timed(1.0)])
    assert (alone.num_steps, alone.apart, alone.half_quartile_distance) == (4, 0.01, 0.01)
    assert alone.error_seconds == pytest.approx(0.02 / 1.349 * 1.2533 / 2)
    # Two packs: half of sqrt(2) times the error of one.
    both = StepNoise.of([timed(1.0), timed(1.0)])
    assert both.num_steps == 8
    assert both.error_seconds == pytest.approx(alone.error_seconds / math.sqrt(2))


def test_a_time_that_half_of_the_packs_do_not_know_is_unknown(make_result):
    """One pack of two, or one of six, may agree by luck; two of three are a majority."""
    known, hidden = timed(1.0), timed(None, apart=0.3, distance=0.5)
    arms = {"half": [known, hidden], "most": [known, known, hidden]}
    results = [
        make_result(arm, seed, profile=profile, pack_id=f"p-{arm}-{seed}", attempt=1)
        for arm, profiles in arms.items()
        for seed, profile in enumerate(profiles)
    ]
    (study,) = split_studies(results)
    costs = {summary.arm.name: summary.costs for summary in analyse(study).summaries}
    assert (costs["half"].step_seconds, costs["half"].tokens_per_second) == (None, None)
    assert costs["half"].step_noise.apart == pytest.approx((0.01 + 0.3) / 2)
    assert (costs["most"].step_seconds.median, costs["most"].step_seconds.n) == (1.0, 2)


def test_noise_is_that_of_the_packs_that_know_the_time(make_result):
    known, hidden = timed(1.0), timed(None, apart=0.3, distance=0.5)
    assert StepNoise.of([known, known, hidden]) == StepNoise.of([known, known])
    assert StepNoise.of([hidden, hidden]).apart == 0.3
    assert StepNoise.of([]) is None
    # Seeds of one pack share their measurement, which counts once; an arm of before had no look at noise.
    arms = {
        "one": [known, known],
        "hidden": [hidden, hidden],
        "before": [timed(1.0, steps=None, apart=None, distance=None)] * 2,
    }
    results = [
        make_result(arm, seed, profile=profile, pack_id=f"p-{arm}", attempt=1)
        for arm, profiles in arms.items()
        for seed, profile in enumerate(profiles)
    ]
    (study,) = split_studies(results)
    costs = {summary.arm.name: summary.costs for summary in analyse(study).summaries}
    assert costs["one"].step_noise == StepNoise.of([known])
    assert (costs["hidden"].step_seconds, costs["hidden"].step_noise.apart) == (None, 0.3)
    assert (costs["before"].step_seconds.median, costs["before"].step_noise) == (1.0, None)


def test_failed_runs_do_not_enter_means(make_result):
    results = [make_result("a", 0, 1.0), make_result("a", 1, 99.0, status="failed")]
    (study,) = split_studies(results)
    assert analyse(study).summaries[0].score(LOSS).values == (1.0,)


def test_frontier_by_hand():
    points = {
        "small": (1.0, 3.0),
        "middle": (2.0, 2.0),
        "beaten": (2.0, 2.5),
        "large": (3.0, 1.0),
        "twin": (3.0, 1.0),
    }
    assert pareto_frontier(points) == ("small", "middle", "large", "twin")


coordinate = st.integers(0, 6).map(float)


@given(st.dictionaries(st.text(max_size=3), st.tuples(coordinate, coordinate), min_size=1))
def test_every_point_off_the_frontier_is_beaten_by_one_on_it(points):
    frontier = pareto_frontier(points)
    assert frontier
    for name, point in points.items():
        beaten = any(
            points[f][0] <= point[0] and points[f][1] <= point[1] and points[f] != point for f in frontier
        )
        assert beaten == (name not in frontier)


def test_returns_diminish_at_the_smallest_rank_that_kept_the_share(make_rank_study):
    # The gain from r1 to r8 is 1.0: r2 kept .5 of it, r4 .96.
    noise = [0.0, 0.02, -0.02, 0.01, -0.01, 0.0]
    means = {1: 2.0, 2: 1.5, 4: 1.04, 8: 1.0}
    losses = {rank: [mean + (mean - 1.0) * x for x in noise] for rank, mean in means.items()}
    returns = analyse(make_rank_study(losses)).returns
    assert returns.knee.name == "r4"
    assert returns.kept_share == pytest.approx(0.96)
    assert (returns.whole_gain.winner, returns.knee_comparison.winner) == ("r8", "r8")


def test_no_gain_has_no_share(make_rank_study):
    returns = analyse(make_rank_study({1: [1.0, 1.1], 8: [1.2, 1.15]})).returns
    assert returns.knee.name == "r1"
    assert returns.kept_share is None


def test_a_failed_seed_leaves_its_seed_out_of_every_rank(make_result):
    losses = {1: {0: 2.0, 1: 8.0}, 8: {0: 1.0}}
    results = [
        make_result(f"r{rank}", seed, loss, experiment_type="rank_ablation", settings={"lora_rank": rank})
        for rank, by_seed in losses.items()
        for seed, loss in by_seed.items()
    ]
    (study,) = split_studies(results)
    assert analyse(study).returns.means == (2.0, 1.0)


def grid_study(make_result, losses):
    """A rank ablation from {(rank, rate): loss}, one seed."""
    results = [
        make_result(
            f"r{rank}-{rate:g}",
            0,
            loss,
            experiment_type="rank_ablation",
            settings={"lora_rank": rank, "learning_rate": rate},
        )
        for (rank, rate), loss in losses.items()
    ]
    (study,) = split_studies(results)
    return study


def test_each_rank_stands_on_the_ladder_at_its_best_rate(make_result):
    # At the first rate listed rank 8 is behind rank 4; at the best of each it is ahead.
    losses = {(4, 1e-4): 2.0, (4, 1e-3): 1.5, (4, 1e-2): 1.8, (8, 1e-4): 2.5, (8, 1e-3): 1.2, (8, 1e-2): 1.0}
    analysis = analyse(grid_study(make_result, losses))
    returns = analysis.returns
    assert [arm.name for arm in returns.ladder] == ["r4-0.001", "r8-0.01"]
    assert (returns.means, returns.num_rates) == ((1.5, 1.0), (3, 3))
    assert analysis.reference.name == "r8-0.01"
    assert returns.whole_gain.mean == pytest.approx(0.5)


def test_a_rank_at_another_rate_than_the_reference_is_not_on_its_ladder(make_result):
    one_rate_each = grid_study(make_result, {(2, 1e-3): 2.0, (4, 1e-4): 1.5, (8, 1e-3): 1.0})
    assert [arm.name for arm in analyse(one_rate_each).returns.ladder] == ["r2-0.001", "r8-0.001"]
    untuned = grid_study(make_result, {(4, 1e-4): 1.5, (8, 1e-4): 1.2, (8, 1e-3): 1.0})
    assert analyse(untuned).returns is None


@pytest.mark.parametrize(
    ("targets", "roles"),
    [
        ("qv", {"attention"}),
        ("all", {"attention", "mlp"}),
        (("q_proj", "v_proj"), {"attention"}),
        (("c_attn", "mlp.c_proj"), {"attention", "mlp"}),
        (("attn.c_proj",), {"attention"}),
        (("c_proj",), None),
    ],
)
def test_roles_of_targets(make_result, targets, roles):
    (study,) = split_studies([make_result("a", 0, settings={"target_modules": targets})])
    found = target_roles(study.arms[0])
    assert found == (None if roles is None else frozenset(roles))


def test_curve_is_the_mean_over_seeds_of_means_over_steps():
    def run(losses):
        return [
            StepRow(step=i, loss=x, learning_rate=1.0, grad_norm=None) for i, x in enumerate(losses, start=1)
        ]

    points = mean_curve([run([1.0, 3.0, 5.0]), run([2.0, None, 9.0])], width=2)
    # Steps 1-2: (1 + 3) / 2 = 2 and 2; step 3: 5 and 9, sd = sqrt(8).
    assert [(p.step, p.mean, p.n) for p in points] == [(2, 2.0, 2), (3, 7.0, 2)]
    assert points[1].high == pytest.approx(7 + math.sqrt(8))


def test_one_seed_has_no_band_and_curves_are_thinned():
    run = [StepRow(step=i, loss=1.0, learning_rate=1.0, grad_norm=None) for i in range(1, 1001)]
    points = mean_curve([run], width=bin_width(1000))
    assert len(points) <= 60
    assert points[-1].step == 1000
    assert points[0].low is None


def test_equal_gpus_and_thread_counts_are_comparable_but_libraries_are_not(make_environment):
    base = make_environment(device="cuda:0")
    assert comparable(base, make_environment(device="cuda:1", num_threads=9, python="3.12"))
    assert not comparable(base, make_environment(device="cuda:0", peft="2"))
    assert not comparable(base, make_environment(device="cuda:0", device_name="another"))
    assert not comparable(base, None)
    assert comparable(None, None)


def test_environments_are_grouped_as_recorded(make_result, make_environment):
    results = [
        make_result("a", 0),
        make_result("a", 1),
        make_result("a", 2, environment=make_environment(torch="2")),
    ]
    assert [group.experiments for group in environment_groups(results)] == [("a_s0", "a_s1"), ("a_s2",)]


def test_a_run_without_recorded_algorithms_counts_with_those_that_are_equal_in_all_else(
    make_result, make_environment
):
    recorded = [(None, "1"), ("deterministic", "1"), ("fastest", "1"), (None, "2")]
    results = [
        make_result("a", seed, environment=make_environment(algorithms=algorithms, torch=torch))
        for seed, (algorithms, torch) in enumerate(recorded)
    ]
    groups = environment_groups(results)
    assert [group.experiments for group in groups] == [("a_s0", "a_s1"), ("a_s2",), ("a_s3",)]
    assert [group.environment.algorithms for group in groups] == ["deterministic", "fastest", None]
