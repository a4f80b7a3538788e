"""Which learning rate stands for an arm, which arms tie, and which are on the frontier."""

from dataclasses import replace

import numpy as np
import pytest
from arch.bootstrap import MCS

from lorastudy.analysis.overview import Criterion, analyse
from lorastudy.protocol.scoring import FailedRow
from lorastudy.report.sections.tuning import rate_blocks
from lorastudy.stats.best import confidence_set
from lorastudy.stats.frontier import StepTime, standings, undominated
from lorastudy.stats.rate_choice import best_of, is_still_sought
from lorastudy.stats.study import split_studies
from lorastudy.stats.summary import LOSS, metric_of
from lorastudy.store.views import FailedRows, ScoreValue
from lorastudy.suite.metrics import BUILT_IN


def loss_scores(choosing, test=None):
    by_split = {"eval": choosing, "test": test}
    return {
        (split, "loss"): ScoreValue(value=value, unit="nats", version=1, num_items=9)
        for split, value in by_split.items()
        if value is not None
    }


def rate_study(make_result, table, *, kind="rank_ablation"):
    """From {(rank, rate): [(loss on the rows that choose, loss on test rows) by seed]}."""
    results = [
        make_result(
            f"r{rank}_lr{rate:g}",
            seed,
            experiment_type=kind,
            settings={"lora_rank": rank, "learning_rate": rate},
            scores=loss_scores(*pair),
        )
        for (rank, rate), pairs in table.items()
        for seed, pair in enumerate(pairs)
    ]
    (study,) = split_studies(results)
    return study


#: The rate 1e-3 is best for rank 8 where rates are chosen, and worse on the test rows.
TABLE = {
    (4, 1e-3): [(2.0, 2.0), (2.1, 2.0), (2.0, 2.1)],
    (4, 1e-2): [(1.5, 1.6), (1.5, 1.5), (1.6, 1.6)],
    (8, 1e-3): [(1.0, 1.3), (1.1, 1.3), (1.0, 1.4)],
    (8, 1e-2): [(1.2, 1.1), (1.2, 1.2), (1.3, 1.1)],
}


def test_the_rate_is_chosen_on_other_rows_than_those_that_report(make_result):
    analysis = analyse(rate_study(make_result, TABLE))
    assert analysis.reference.name == "r8_lr0.001"
    assert [choice.arm.name for choice in analysis.choices] == ["r4_lr0.01", "r8_lr0.001"]
    assert not any(choice.in_sample for choice in analysis.choices)
    # Test rows: (1.6 - 1.3 + 1.5 - 1.3 + 1.6 - 1.4) / 3 = .7 / 3.
    (comparison,) = analysis.primary_comparisons
    assert (comparison.arm, comparison.mean) == ("r4_lr0.01", pytest.approx(0.7 / 3))


def scored_run(make_result, rate, seed, *, score, num_failed):
    """A run whose mean is over the rows that did not fail, of ten; a score of None: all failed."""
    scores = loss_scores(1.0)
    if score is not None:
        scores["eval", "token_f1"] = ScoreValue(
            value=score, unit="share", version=1, num_items=10 - num_failed
        )
    rows = tuple(FailedRow(where=f"rows:{number}", message="no number") for number in range(num_failed))
    failed = {("eval", "token_f1"): FailedRows(num_rows=10, version=1, rows=rows)} if rows else {}
    return make_result(
        f"r8_lr{rate:g}",
        seed,
        experiment_type="rank_ablation",
        settings={"lora_rank": 8, "learning_rate": rate},
        scores=scores,
        failed_rows=failed,
    )


def test_a_rate_with_failed_rows_is_no_better_for_it(make_result):
    """At 1e-2 one easy row has a value, at 1e-1 on one seed none, at 1e-3 all have."""
    metric = metric_of(BUILT_IN["token_f1"])
    table = {1e-3: [(0.5, 0), (0.6, 0)], 1e-2: [(1.0, 9), (1.0, 9)], 1e-1: [(None, 10), (1.0, 0)]}
    results = [
        scored_run(make_result, rate, seed, score=score, num_failed=num_failed)
        for rate, by_seed in table.items()
        for seed, (score, num_failed) in enumerate(by_seed)
    ]
    (study,) = split_studies(results)
    assert best_of(study, study.arms, metric=metric).name == "r8_lr0.001"
    analysis = analyse(
        study, criterion=Criterion(primary_metric="token_f1", definitions=(BUILT_IN["token_f1"],))
    )
    _, about, shown = rate_blocks(analysis, level=2)
    assert "a rate with fewer failed rows by run came before one with more" in str(about)
    # On seed 1 the other rates are .1 and 0 better, so it is .05 / 2 better than the mean seed: 1.000 - .025.
    assert [cell.text for cell in shown.rows[0][1:5]] == ["0.550", "1.000, 9 rows failed", "0.975", "0.001"]


def test_a_search_is_over_if_no_run_got_a_value(make_result):
    metric = metric_of(BUILT_IN["token_f1"])
    results = [scored_run(make_result, rate, 7, score=None, num_failed=10) for rate in (1e-3, 2e-3, 5e-3)]
    study = replace(split_studies(results)[0], tuning_seeds=frozenset({7}))
    assert not is_still_sought(study, study.arms, metric=metric)
    assert is_still_sought(study, study.arms, metric=LOSS)


def test_only_the_chosen_rates_are_compared(make_result):
    analysis = analyse(rate_study(make_result, TABLE))
    assert analysis.comparison("r4_lr0.001") is None
    assert [standing.arm for standing in analysis.standings] == ["r4_lr0.01", "r8_lr0.001"]


def test_a_type_of_ones_own_may_study_the_rate(make_result):
    analysis = analyse(rate_study(make_result, TABLE, kind="own"))
    assert analysis.choices == ()
    assert len(analysis.primary_comparisons) == 3


def test_a_choice_without_test_rows_is_said_to_be_in_sample(make_result):
    table = {key: [(loss, None) for loss, _ in pairs] for key, pairs in TABLE.items()}
    assert all(choice.in_sample for choice in analyse(rate_study(make_result, table)).choices)


def test_optimism_by_hand(make_result):
    # Over all seeds 1e-3 is chosen (mean 1.1 against 1.13). Without seed 0 it is 1.5 against 1.15, without seed 1 1.15
    # against 1.1: 1e-2, which has 1.1 and 1.2 there. Without seed 2 it is .65 against 1.15: 1e-3, which has 2.0.
    table = {
        (8, 1e-3): [(0.3, None), (1.0, None), (2.0, None)],
        (8, 1e-2): [(1.1, None), (1.2, None), (1.1, None)],
    }
    (choice,) = analyse(rate_study(make_result, table)).choices
    assert choice.arm.name == "r8_lr0.001"
    assert choice.optimism == pytest.approx((1.1 + 1.2 + 2.0) / 3 - (0.3 + 1.0 + 2.0) / 3)


def test_the_tied_set_is_archs():
    costs = np.random.default_rng(1).normal([1.0, 1.0, 1.5, 2.0], 0.05, (8, 4))
    names = ["a", "b", "c", "d"]
    found = confidence_set(dict(zip(names, costs.T.tolist(), strict=True)))
    oracle = MCS(costs, 0.05, reps=1000, block_size=1, method="max", bootstrap="stationary", seed=20111)
    oracle.compute()
    assert found.arms == tuple(names[position] for position in sorted(oracle.included))
    assert found.arms == ("a", "b")
    assert found.left_out == ("c", "d")
    assert found.num_seeds == 8


def test_an_arm_that_no_verdict_tells_from_one_in_the_set_stays_in_it():
    costs = np.random.default_rng(1).normal([1.0, 1.0, 1.5, 2.0], 0.05, (8, 4))
    by_arm = dict(zip("abcd", costs.T.tolist(), strict=True))
    assert confidence_set(by_arm, undecided=[("c", "a")]).arms == ("a", "b", "c")
    assert confidence_set(by_arm, undecided=[("b", "c")]).left_out == ("d",)
    assert confidence_set(by_arm, undecided=[("d", "c")]).arms == ("a", "b")


def test_an_arm_that_a_verdict_puts_behind_one_in_the_set_is_left_out_of_it():
    costs = np.random.default_rng(1).normal([1.0, 1.0, 1.5, 2.0], 0.05, (8, 4))
    by_arm = dict(zip("abcd", costs.T.tolist(), strict=True))
    found = confidence_set(by_arm, behind=[("b", "a"), ("d", "a")])
    assert (found.arms, found.left_out) == (("a",), ("b", "c", "d"))
    # what is told of two arms that are both out of it changes nothing
    assert confidence_set(by_arm, behind=[("d", "c")]).arms == ("a", "b")
    # an arm that is not told from one that is behind is not in it for that
    assert confidence_set(by_arm, behind=[("b", "a")], undecided=[("c", "b")]).arms == ("a",)


def test_no_set_from_too_few_seeds_or_from_differences_without_noise():
    assert confidence_set({"a": [1.0] * 5, "b": [2.0, 2.1, 2.2, 2.0, 2.1]}) is None
    assert confidence_set({"a": [1.0, 1.1, 1.2, 1.0, 1.1, 1.3]}) is None
    same = [1.0, 1.1, 1.2, 1.0, 1.1, 1.3]
    assert confidence_set({"a": same, "b": [cost + 0.5 for cost in same]}) is None


def test_undominated_by_hand():
    points = np.array([[1.0, 3.0], [2.0, 2.0], [2.0, 2.5], [3.0, 1.0], [3.0, 1.0]])
    assert undominated(points).tolist() == [True, True, False, True, True]


def test_undominated_rival_by_rival_is_as_all_pairs_at_once():
    draw = np.random.default_rng(0)
    for num_counts in (1, 2, 4):
        costs = draw.integers(0, 4, (50, 12, num_counts)).astype(float)  # few values, so that there are ties
        ours, theirs = costs[..., :, None, :], costs[..., None, :, :]
        beaten = np.all(theirs <= ours, axis=-1) & np.any(theirs < ours, axis=-1)
        assert np.array_equal(undominated(costs), ~np.any(beaten, axis=-1))


def test_undominated_with_floors_is_as_all_pairs_at_once():
    draw = np.random.default_rng(0)
    floors = np.array([0.0, 0.05, 0.3])
    costs = draw.uniform(1.0, 2.0, (50, 12, 3))
    ours, theirs = costs[..., :, None, :], costs[..., None, :, :]
    told_apart = np.maximum(ours, theirs) > np.minimum(ours, theirs) * (1 + floors)
    worse, better = told_apart & (theirs > ours), told_apart & (theirs < ours)
    beaten = ~np.any(worse, axis=-1) & np.any(better, axis=-1)
    assert np.array_equal(undominated(costs, floors=floors), ~np.any(beaten, axis=-1))
    assert not np.array_equal(undominated(costs, floors=floors), undominated(costs))


def test_a_standing_is_as_sure_as_the_seeds_are():
    found = standings(
        {"small": [1.2, 1.2, 1.2, 1.2], "close": [1.0, 1.3, 1.0, 1.3], "large": [0.5, 0.5, 0.5, 0.5]},
        memory_bytes={"small": [1.0] * 4, "close": [2.0] * 4, "large": [3.0] * 4},
        step_times={},
        forgetting={},
    )
    by_arm = {standing.arm: standing for standing in found}
    assert by_arm["small"].probability == by_arm["large"].probability == 1.0
    # Beaten unless the mean of four draws from {1.0, 1.3} lies below 1.2: at most two of 1.3, (1 + 4 + 6) / 16.
    assert by_arm["close"].probability == pytest.approx(11 / 16, abs=0.04)
    assert by_arm["close"].on_frontier


def test_what_was_not_measured_for_all_puts_nobody_ahead():
    same = {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    options = {"memory_bytes": same, "step_times": {"a": StepTime(seconds=0.1, error_seconds=0.0)}}
    with_time = standings({"a": [2.0, 2.1], "b": [1.0, 1.1]}, forgetting={"a": [0.1, 0.1]}, **options)
    assert [standing.on_frontier for standing in with_time] == [False, True]
    forgetting = {"a": [0.1, 0.1], "b": [0.9, 0.9]}
    with_both = standings({"a": [2.0, 2.1], "b": [1.0, 1.1]}, forgetting=forgetting, **options)
    assert [standing.on_frontier for standing in with_both] == [True, True]
    # b needs less memory, but on one seed of a nobody knows how much.
    options |= {"memory_bytes": {"a": [9.0], "b": [1.0, 1.0]}, "forgetting": forgetting}
    without_memory = standings({"a": [1.0, 1.1], "b": [1.0, 1.1]}, **options)
    assert [standing.on_frontier for standing in without_memory] == [True, False]


def timed(**seconds):
    return {name: StepTime(seconds=value, error_seconds=0.02) for name, value in seconds.items()}


def test_times_below_the_floor_are_not_told_apart():
    """b has the better score. a is on the frontier only if it is faster by more than 5 %."""
    qualities = {"a": [1.0, 1.0], "b": [0.9, 0.9]}
    options = {"memory_bytes": {}, "forgetting": {}}
    close = standings(qualities, step_times=timed(a=1.0, b=1.04), **options)
    assert [standing.on_frontier for standing in close] == [False, True]
    apart = standings(qualities, step_times=timed(a=1.0, b=1.06), **options)
    assert [standing.on_frontier for standing in apart] == [True, True]


def test_a_slower_arm_of_equal_score_is_beaten_only_beyond_the_floor():
    qualities = {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    options = {"memory_bytes": {}, "forgetting": {}}
    found = [
        [standing.on_frontier for standing in standings(qualities, step_times=timed(a=1.0, b=b), **options)]
        for b in (1.04, 1.06)
    ]
    assert found == [[True, True], [True, False]]


def test_a_probability_holds_the_error_of_the_times():
    """a is on the frontier where b takes more than 1.05 times as long.

    1.06 + .02 z > 1.05 (1 + .02 z'): the difference is normal with mean .01 and standard deviation
    sqrt(.02^2 + .021^2) = .029, so the probability is that of z < .01 / .029 = .345: .635.
    """
    a, b = standings(
        {"a": [1.0, 1.0], "b": [0.9, 0.9]}, memory_bytes={}, forgetting={}, step_times=timed(a=1.0, b=1.06)
    )
    assert a.probability == pytest.approx(0.635, abs=0.03)
    assert b.probability == 1.0


def test_memory_varies_with_the_seeds_and_in_pairs():
    """b needs 1 more than a on each seed, whatever the seed needs: it is beaten in every resample."""
    a, b = standings(
        {"a": [1.0] * 3, "b": [1.0] * 3}, forgetting={}, step_times={},
        memory_bytes={"a": [10.0, 50.0, 90.0], "b": [11.0, 51.0, 91.0]},
    )  # fmt: skip
    assert (a.probability, b.probability) == (1.0, 0.0)
    # Where each needs less on one of two seeds, both are equal by their means and in the half of resamples with both seeds.
    a, b = standings(
        {"a": [1.0] * 2, "b": [1.0] * 2}, forgetting={}, step_times={},
        memory_bytes={"a": [10.0, 12.0], "b": [12.0, 10.0]},
    )  # fmt: skip
    assert a.probability == pytest.approx(0.75, abs=0.03)
    assert b.probability == pytest.approx(0.75, abs=0.03)


def test_the_knee_has_an_interval_over_seeds(make_rank_study):
    clear = [0.0, 0.01, -0.01, 0.005, -0.005, 0.0]
    losses = {1: [2.0 + x for x in clear], 4: [1.01 - x for x in clear], 16: [1.0 + x for x in clear]}
    returns = analyse(make_rank_study(losses)).returns
    assert [arm.name for arm in returns.knee_interval] == ["r4", "r4"]
    # Rank 4 keeps .94, .96, .94, ... of the gain, seed by seed: some resamples keep less than .95.
    wide = {**losses, 4: [1.05 + 4 * x for x in clear]}
    unsure = analyse(make_rank_study(wide)).returns
    assert [arm.name for arm in unsure.knee_interval] == ["r4", "r16"]


def test_forgetting_and_cost_stand_beside_quality(make_study):
    standing = analyse(make_study({"a": [1.0, 1.2], "b": [2.0, 2.2]})).standings[0]
    assert (standing.arm, standing.quality_cost, standing.memory_bytes) == ("a", pytest.approx(1.1), None)
    assert LOSS.lower_is_better
