"""Paired differences and verdicts, against scipy, against hand arithmetic, and by simulation."""

import numpy as np
import pytest
from scipy import stats

from lorastudy.analysis.paired import (
    compare_with_reference,
    holm,
    seeds_needed,
    sign_flip_p,
    smallest_sign_flip_p,
    t_interval,
)
from lorastudy.analysis.study import split_studies
from lorastudy.analysis.summary import EXACT_MATCH, LOSS
from lorastudy.tracker.views import ScoreValue


def compare(study, arm="a", reference="ref", metric=LOSS):
    comparisons = compare_with_reference(
        study, arms=study.arms, reference=study.arm(reference), metric=metric
    )
    return next(comparison for comparison in comparisons if comparison.arm == arm)


@pytest.mark.parametrize("differences", [[0.1, 0.2, -0.05], [1.0, 2.0, 3.0, 4.0], [0.3, -0.3, 0.1, 0.0, 0.2]])
def test_sign_flip_equals_scipys_exact_test(differences):
    expected = stats.permutation_test(
        (np.array(differences),), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert sign_flip_p(differences) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "p"), [(1, 1.0), (2, 0.5), (3, 0.25), (4, 0.125), (5, 0.0625), (6, 0.03125)])
def test_what_n_seeds_can_show_at_best(n, p):
    assert smallest_sign_flip_p(n) == p
    assert sign_flip_p([0.1 + i for i in range(n)]) == p


def test_sign_flip_is_absent_where_patterns_are_too_many_to_list():
    assert sign_flip_p([1.0] * 23) is None


def test_holm_by_hand():
    # Sorted .01, .03, .04: 3 x .01 = .03; 2 x .03 = .06; 1 x .04 = .04, raised to .06.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_t_interval_equals_scipy():
    differences = [0.11, 0.08, 0.13, 0.02]
    expected = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert t_interval(differences) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("effect", "n"), [(1.0, 10), (0.5, 34), (2.0, 5)])
def test_seeds_needed_equals_the_power_tables(effect, n):
    # statsmodels: ceil(TTestPower().solve_power(effect, alpha=.05, power=.8)) gives 10, 34, 5.
    assert seeds_needed(-effect, 1.0) == n


def test_seeds_needed_is_absent_where_nothing_would_do():
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(0.001, 1.0) is None


def test_differences_are_taken_per_seed(make_study):
    # Seeds differ by a whole nat, arms by about a hundredth: only pairing shows it.
    comparison = compare(make_study({"ref": [1.0, 2.0, 3.0], "a": [1.010, 2.011, 3.012]}))
    assert list(comparison.differences.values()) == pytest.approx([0.010, 0.011, 0.012])
    assert (comparison.verdict, comparison.n) == ("worse", 3)
    assert comparison.sign_flip_p == 0.25


def test_lower_loss_is_better_and_higher_accuracy_is_better(make_study, make_result):
    lower = make_study({"ref": [1.0, 1.1, 1.2], "a": [0.50, 0.61, 0.72]})
    assert compare(lower).verdict == "better"
    results = [
        make_result(
            arm,
            seed,
            scores={("eval", "exact_match"): ScoreValue(value=v, unit="share", version=1, num_items=9)},
        )
        for arm, values in {"ref": [0.1, 0.1, 0.1], "a": [0.5, 0.51, 0.52]}.items()
        for seed, v in enumerate(values)
    ]
    (higher,) = split_studies(results)
    assert compare(higher, metric=EXACT_MATCH).verdict == "better"


def test_only_seeds_of_both_arms_count(make_result):
    results = [make_result("ref", seed, 1.0 + seed) for seed in (0, 1, 2)]
    results += [make_result("a", seed, 1.5 + seed) for seed in (1, 2, 3)]
    (study,) = split_studies(results)
    assert sorted(compare(study).differences) == [1, 2]


def test_one_seed_can_never_tell(make_study):
    comparison = compare(make_study({"ref": [1.0], "a": [9.0]}))
    assert (comparison.verdict, comparison.reason) == ("cannot tell", "one seed")
    assert comparison.mean == 8.0
    assert comparison.interval is comparison.t_p is comparison.sign_flip_p is None


def test_equal_differences_say_nothing_about_seeds(make_study):
    comparison = compare(make_study({"ref": [1.0, 1.1, 1.2], "a": [1.5, 1.6, 1.7]}))
    assert (comparison.verdict, comparison.reason) == ("cannot tell", "every seed gave the same difference")


def test_an_interval_over_zero_cannot_tell(make_study):
    comparison = compare(make_study({"ref": [1.0, 1.0, 1.0], "a": [1.1, 0.9, 1.05]}))
    low, high = comparison.interval
    assert low < 0 < high
    assert (comparison.verdict, comparison.reason) == ("cannot tell", "the interval contains 0")


def test_many_comparisons_are_corrected_together(make_study):
    # Differences .10, .12, .16: t = .1267 / (.0306 / sqrt 3) = 7.18, p = .019; three times that is .057.
    clear = [1.10, 1.12, 1.16]
    nulls = {"b": [1.1, 0.9, 1.05], "c": [0.9, 1.1, 0.96]}
    alone = compare(make_study({"ref": [1.0, 1.0, 1.0], "a": clear}))
    among = compare(make_study({"ref": [1.0, 1.0, 1.0], "a": clear, **nulls}))
    assert alone.verdict == "worse"
    assert (among.verdict, among.reason) == ("cannot tell", "not after correction for 3 comparisons")
    assert among.holm_p == pytest.approx(3 * alone.t_p)


def test_runs_of_different_environments_are_not_paired(make_result, make_environment):
    results = [make_result("ref", seed, 1.0) for seed in (0, 1, 2)]
    results += [make_result("a", seed, 1.5 + seed / 10) for seed in (0, 1)]
    results += [make_result("a", 2, 1.7, environment=make_environment(torch="2"))]
    (study,) = split_studies(results)
    comparison = compare(study)
    assert (sorted(comparison.differences), comparison.seeds_apart) == ([0, 1], (2,))


def test_scores_of_an_older_metric_version_are_not_compared(make_result):
    results = [make_result("ref", 0, 1.0, version=2), make_result("a", 0, 1.0, version=1)]
    (study,) = split_studies(results)
    comparison = compare(study)
    assert (comparison.n, comparison.reason) == (0, "no seed in common")


@pytest.mark.parametrize("num_seeds", [3, 6])
def test_false_verdicts_stay_within_five_percent(make_study, num_seeds):
    """Three arms without any difference: the chance that any is called better or worse, by simulation."""
    rng, num_studies, wrong = np.random.default_rng(0), 400, 0
    for _ in range(num_studies):
        losses = {name: list(rng.normal(1.0, 0.1, num_seeds)) for name in ("ref", "a", "b", "c")}
        study = make_study(losses)
        comparisons = compare_with_reference(study, arms=study.arms, reference=study.arm("ref"), metric=LOSS)
        wrong += any(comparison.verdict != "cannot tell" for comparison in comparisons)
    # .05 and three standard errors of a share of 400: .05 + 3 x .011.
    assert wrong / num_studies <= 0.083


def test_intervals_cover_the_true_difference():
    rng = np.random.default_rng(1)
    covered = [low <= 0.3 <= high for low, high in (t_interval(rng.normal(0.3, 1, 4)) for _ in range(4000))]
    assert 0.93 <= np.mean(covered) <= 0.97
