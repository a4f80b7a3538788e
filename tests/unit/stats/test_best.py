"""Hsu's multiple comparisons with the best: its quantiles, its bounds by hand, and how often they are wrong."""

import itertools

import numpy as np
import pytest
from scipy import stats

from lorastudy.stats.best import against_the_best, constrained_bounds, dunnett_quantile, tukey_quantile
from lorastudy.stats.twoway import seeds_only


def pairs_of(costs):
    """Estimates of every pair from costs by (seed, arm)."""
    return {
        (i, j): seeds_only(costs[:, i] - costs[:, j])
        for i, j in itertools.combinations(range(costs.shape[1]), 2)
    }


@pytest.mark.parametrize(
    ("num_others", "degrees", "published"),
    # Dunnett, JASA 50 (1955), table 1a: one-sided, joint confidence 95 %
    [(1, 10, 1.81), (2, 10, 2.15), (3, 20, 2.19), (5, 30, 2.33), (9, 60, 2.48), (3, 5, 2.68)],
)
def test_quantiles_are_dunnetts(num_others, degrees, published):
    assert dunnett_quantile(num_others, degrees=degrees) == pytest.approx(published, abs=0.006)


def test_bounds_by_hand():
    # Costs 1, 2 and 4 with half widths of 1.5: the second may be the best, the third is not; nobody is shown to be it.
    means = np.array([1.0, 2.0, 4.0])
    lower, upper = constrained_bounds(means[:, None] - means[None, :], np.full((3, 3), 1.5))
    # 1 - 2 ± 1.5; 2 - 1 ± 1.5; 4 - 1 ± 1.5
    assert lower.tolist() == [-2.5, -0.5, 0.0]
    assert upper.tolist() == [0.5, 2.5, 4.5]


def test_a_pair_that_cannot_be_told_apart_leaves_both_in_question():
    draw = np.random.default_rng(0)
    costs = np.array([1.0, 2.0, 3.0]) + draw.normal(0, 0.01, (6, 3))
    found = against_the_best(pairs_of(costs), arms=range(3), num_seeds=6)
    assert found[0].is_best
    assert found[1].is_behind
    few = {**pairs_of(costs), (0, 1): seeds_only(costs[:3, 0] - costs[:3, 1])}
    found = against_the_best(few, arms=range(3), num_seeds=6)
    assert not found[0].is_best
    assert not found[1].is_behind
    assert found[2].is_behind


def test_one_lost_run_of_six_leaves_enough():
    costs = np.array([1.0, 2.0]) + np.random.default_rng(0).normal(0, 0.01, (5, 2))
    assert against_the_best(pairs_of(costs), arms=range(2), num_seeds=6)[0].is_best


def test_equal_arms_are_called_behind_in_5_of_100_studies_at_most():
    """2,000 studies of five equal arms with eight seeds: the simulation error of 5 % is .5 points."""
    draw, wrong = np.random.default_rng(23), 0
    for _ in range(2000):
        found = against_the_best(pairs_of(draw.normal(size=(8, 5))), arms=range(5), num_seeds=8)
        wrong += any(one.is_behind for one in found.values())
    assert wrong / 2000 <= 0.05 + 0.012


@pytest.mark.parametrize(("num_arms", "degrees"), [(2, 5), (5, 20), (10, 60)])
def test_tukeys_quantile_is_scipys(num_arms, degrees):
    expected = stats.studentized_range.ppf(0.95, num_arms, degrees) / 2**0.5
    assert tukey_quantile(num_arms, degrees=degrees) == pytest.approx(expected, abs=2e-4)


def test_fewer_than_six_seeds_show_nothing():
    costs = np.array([1.0, 2.0]) + np.random.default_rng(0).normal(0, 0.01, (5, 2))
    assert against_the_best(pairs_of(costs), arms=range(2), num_seeds=5) == {}


@pytest.mark.parametrize(
    ("gaps", "spreads"),
    [
        ((0.0, 1e-6, 1e-6, 1e-6), (1.0, 1.0, 1.0, 1.0)),
        ((0.0, 0.8, 0.8, 1.6), (1.0, 1.0, 1.0, 1.0)),
        ((0.0, 0.8, 0.8), (1.0, 1.0, 3.0)),  # noise that grows with the arm
    ],
)
def test_all_bounds_hold_together_in_95_of_100_studies(gaps, spreads):
    """1,000 studies of eight seeds: the simulation error of 5 % is 0.7 points, of which two and a half are allowed."""
    draw, means = np.random.default_rng(20), np.array(gaps)
    truth = [means[i] - np.delete(means, i).min() for i in range(len(means))]
    wrong = 0
    for _ in range(1000):
        costs = means + draw.normal(size=(8, 1)) + draw.normal(size=(8, len(means))) * np.array(spreads)
        found = against_the_best(pairs_of(costs), arms=range(len(means)), num_seeds=6)
        wrong += any(not one.lower <= truth[arm] <= one.upper for arm, one in found.items())
    assert wrong / 1000 <= 0.05 + 2.5 * 0.0069


def test_a_best_arm_is_found():
    """Its own power: an arm ahead by four standard errors of a difference with eight seeds is shown in most studies."""
    draw, found = np.random.default_rng(21), 0
    ahead = 4 * (2 / 8) ** 0.5
    for _ in range(300):
        costs = np.array([0.0, ahead, ahead, ahead]) + draw.normal(size=(8, 4))
        found += against_the_best(pairs_of(costs), arms=range(4), num_seeds=6)[0].is_best
    assert found / 300 > 0.7
