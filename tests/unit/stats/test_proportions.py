"""Shares of items against scipy, against arithmetic, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from lorastudy.stats.proportions import Share, difference, share_of


@pytest.mark.parametrize(("right", "items"), [(694, 1319), (0, 20), (20, 20), (1, 7)])
def test_the_interval_is_wilson_s(right, items):
    expected = stats.binomtest(right, items).proportion_ci(method="wilson")
    assert Share(num_right=right, num_items=items).interval == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


def test_the_standard_error_of_half_of_1319_items():
    # sqrt(.5 * .5 / 1319) = 0.01377: "1.38 points"
    assert share_of(0.5, 1319).standard_error == pytest.approx(math.sqrt(0.25 / 1319), rel=1e-3)


def test_a_difference_by_hand():
    one, other = Share(num_right=60, num_items=100), Share(num_right=45, num_items=100)
    found = difference(one, other)
    assert found.difference == pytest.approx(0.15)
    # pooled share .525; z = .15 / sqrt(.525 * .475 * (1/100 + 1/100)) = 2.124
    z = 0.15 / math.sqrt(0.525 * 0.475 * 2 / 100)
    assert found.p == pytest.approx(2 * stats.norm.sf(z), rel=1e-9)
    # Newcombe's method 10: d -+ sqrt of the squared distances to the Wilson limits
    (low1, high1), (low2, high2) = one.interval, other.interval
    low = 0.15 - math.hypot(0.6 - low1, high2 - 0.45)
    high = 0.15 + math.hypot(high1 - 0.6, 0.45 - low2)
    assert found.interval == pytest.approx((low, high), rel=1e-9)


@pytest.mark.parametrize("right", [0, 50])
def test_without_any_variance_there_is_no_difference(right):
    share = Share(num_right=right, num_items=50)
    assert difference(share, share).p == 1.0


def test_equal_adapters_are_told_apart_in_one_case_of_twenty_at_most():
    rng = np.random.default_rng(0)
    draws = rng.binomial(1319, 0.5, size=(600, 2))
    pairs = [[Share(num_right=int(n), num_items=1319) for n in pair] for pair in draws]
    told = sum(difference(*pair).is_shown for pair in pairs)
    # 600 * .05 = 30, standard deviation 5.3; three of them above is 46
    assert told <= 46
    covered = sum(low <= 0 <= high for low, high in (difference(*pair).interval for pair in pairs))
    assert covered >= 600 - 46
