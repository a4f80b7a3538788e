"""Planned power and the seeds it takes, against statsmodels and by simulation."""

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from lorastudy.stats.power import (
    MAX_SIMULATED_SEEDS,
    Needed,
    Noise,
    power_of_difference,
    power_of_no_worse,
    seeds_needed,
)
from lorastudy.stats.twoway import seeds_only, two_way
from lorastudy.stats.verdicts import ALPHA, NO_WORSE_ALPHA, sign_flip_p, sign_flip_p_below

SEEDS_ONLY = Noise(seeds=1.0, cells=0.0, items=0.0, num_items=None)


@pytest.mark.parametrize(("effect", "n"), [(0.3, 90), (0.5, 34), (0.7, 19), (0.9, 12)])
def test_seeds_needed_equals_the_power_tables_where_the_t_test_is_the_harder(effect, n):
    # statsmodels: ceil(TTestPower().solve_power(effect, alpha=.05, power=.8)) gives 90, 34, 19, 12.
    exact = TTestPower().solve_power(effect, alpha=ALPHA, power=0.8)
    assert np.ceil(exact) == n
    assert seeds_needed(-effect, SEEDS_ONLY) == Needed(num_seeds=n)


@pytest.mark.parametrize("num_seeds", [13, 20, 60])
@pytest.mark.parametrize("effect", [0.6, 0.9, 1.1])
def test_power_of_more_than_a_few_seeds_equals_statsmodels(effect, num_seeds):
    two_sided = TTestPower().power(effect, num_seeds, ALPHA)
    one_sided = TTestPower().power(effect, num_seeds, NO_WORSE_ALPHA, alternative="larger")
    assert power_of_difference(effect, SEEDS_ONLY, num_seeds=num_seeds)[0] == pytest.approx(
        two_sided, abs=1e-3
    )
    assert power_of_no_worse(effect, SEEDS_ONLY, num_seeds=num_seeds)[0] == pytest.approx(one_sided, abs=1e-3)


@pytest.mark.parametrize(("effect", "n"), [(1e6, 6), (2.0, 6), (1.5, 7), (1.3, 8), (1.0, 11)])
def test_seeds_needed_is_more_than_the_t_test_alone_would_take_and_never_below_six(effect, n):
    # statsmodels, t test alone: 3 (for 1e6 too few to solve), 5, 6, 7, 10.
    assert seeds_needed(effect, SEEDS_ONLY) == Needed(num_seeds=n)


@pytest.mark.parametrize(("sd_over_margin", "n"), [(0.5, 5), (0.75, 7), (1.0, 10), (1.5, 20)])
def test_seeds_for_a_margin_if_the_arms_are_equal(sd_over_margin, n):
    # statsmodels: ceil(TTestPower().solve_power(1 / s, alpha=.025, power=.8, alternative="larger")) gives 5, 7, 10, 20;
    # the one-sided sign-flip test takes five.
    exact = TTestPower().solve_power(
        1 / sd_over_margin, alpha=NO_WORSE_ALPHA, power=0.8, alternative="larger"
    )
    assert max(5, int(np.ceil(exact))) == n
    assert seeds_needed(0.0, SEEDS_ONLY, margin=1 / sd_over_margin) == Needed(num_seeds=n)


def test_whichever_way_is_shorter_counts():
    # Half a margin away, showing the difference takes as much as showing that it is small; at the margin only the first does.
    assert seeds_needed(1.0, SEEDS_ONLY, margin=1.0) == seeds_needed(1.0, SEEDS_ONLY)
    assert (
        seeds_needed(0.05, SEEDS_ONLY, margin=2.0).num_seeds
        < 10
        < seeds_needed(0.05, SEEDS_ONLY, margin=0.3).num_seeds
    )


def shares_shown(effect, num_seeds, *, num_studies=20_000):
    """Share of simulated studies in which both tests show it, two-sided and one-sided."""
    draws = np.random.default_rng(2).normal(effect, 1.0, (num_studies, num_seeds))
    estimate = seeds_only(draws)
    two_sided = (estimate.p_value() <= ALPHA) & (sign_flip_p(draws) <= ALPHA)
    below = seeds_only(-draws)
    one_sided = (below.p_below(0.0) <= NO_WORSE_ALPHA) & (sign_flip_p_below(-draws, 0.0) <= ALPHA)
    return two_sided.mean(), one_sided.mean()


@pytest.mark.parametrize(("effect", "num_seeds"), [(1.8, 6), (1.36, 7), (1.21, 8), (1.02, 10)])
def test_few_seeds_have_the_power_that_is_planned(effect, num_seeds):
    assert num_seeds <= MAX_SIMULATED_SEEDS
    planned = (
        power_of_difference(effect, SEEDS_ONLY, num_seeds=num_seeds)[0],
        power_of_no_worse(effect, SEEDS_ONLY, num_seeds=num_seeds)[0],
    )
    # Three standard errors: .019 of a share of 4,000 (planned), .009 of one of 20,000.
    assert shares_shown(effect, num_seeds) == pytest.approx(planned, abs=0.028)


def test_more_seeds_take_away_the_seeds_noise_and_not_the_items():
    noise = Noise(seeds=1.0, cells=0.5, items=0.3, num_items=100)
    # 1.5 / 20 + .3 = .375: t well above 3 finds a difference of 2.5.
    assert power_of_difference(2.5, noise, num_seeds=20)[0] > 0.95
    # But sqrt(.3) = .55 stays however many seeds there are: a difference of 1 is 1.8 standard errors at best.
    assert power_of_difference(1.0, noise, num_seeds=1000)[0] < 0.5
    needed = seeds_needed(1.0, noise)
    assert needed.num_items in (200, 400)
    assert needed.num_seeds < 100


def test_fewer_independent_items_have_less_power():
    alone = Noise(seeds=0.1, cells=0.0, items=1.0, num_items=40)
    in_groups = Noise(seeds=0.1, cells=0.0, items=1.0, num_items=40, num_groups=4)
    assert (
        power_of_difference(3.0, in_groups, num_seeds=20)
        < power_of_difference(3.0, alone, num_seeds=20) - 0.05
    )


def test_the_noise_of_a_study_is_cut_into_its_parts():
    draw = np.random.default_rng(3)
    seeds, items, cells = (
        draw.normal(0, 0.3, (40, 1)),
        draw.normal(0, 2, (1, 400)),
        draw.normal(0, 1, (40, 400)),
    )
    noise = Noise.of(two_way(seeds + items + cells, np.ones(400)))
    # Of one seed's mean: seeds .3**2 = .09; cells 1 / 400 = .0025; items 4 / 400 = .01.
    assert noise.seeds == pytest.approx(seeds.var(ddof=1), rel=0.1)
    assert noise.cells == pytest.approx(0.0025, rel=0.1)
    assert noise.items == pytest.approx(0.01, rel=0.15)


def test_seeds_needed_is_absent_where_nothing_would_do():
    assert seeds_needed(0.0, SEEDS_ONLY) is None
    assert seeds_needed(0.001, SEEDS_ONLY) is None
