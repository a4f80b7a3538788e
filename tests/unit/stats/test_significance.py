"""The exact test and the correction, against scipy, statsmodels and hand arithmetic."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lorastudy.stats.verdicts import (
    ALPHA,
    MIN_SEEDS_ONE_SIDED,
    holm,
    rejects,
    sign_flip_p,
    sign_flip_p_below,
    smallest_sign_flip_p,
)
from lorastudy.suite.question import MIN_SEEDS

DIFFERENCES = ([0.1, 0.2, -0.05], [1.0, 2.0, 3.0, 4.0], [0.3, -0.3, 0.1, 0.0, 0.2])


@pytest.mark.parametrize("differences", DIFFERENCES)
def test_sign_flip_equals_scipys_exact_test(differences):
    expected = stats.permutation_test(
        (np.array(differences),), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert sign_flip_p(differences) == pytest.approx(expected)


@pytest.mark.parametrize("differences", DIFFERENCES)
@pytest.mark.parametrize("bound", [0.0, 0.15, 3.0])
def test_one_sided_sign_flip_equals_scipys_exact_test(differences, bound):
    expected = stats.permutation_test(
        (np.array(differences) - bound,),
        np.mean,
        permutation_type="samples",
        n_resamples=np.inf,
        alternative="less",
    ).pvalue
    assert sign_flip_p_below(differences, bound) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "p"), [(1, 1.0), (2, 0.5), (3, 0.25), (4, 0.125), (5, 0.0625), (6, 0.03125)])
def test_what_n_seeds_can_show_at_best(n, p):
    assert smallest_sign_flip_p(n) == p
    assert sign_flip_p([0.1 + i for i in range(n)]) == p
    assert sign_flip_p_below([0.1 + i for i in range(n)], 100.0) == p / 2


def test_six_seeds_and_five_one_sided_are_the_fewest_that_the_exact_test_can_do_with():
    assert smallest_sign_flip_p(MIN_SEEDS) <= ALPHA < smallest_sign_flip_p(MIN_SEEDS - 1)
    assert 0.5**MIN_SEEDS_ONE_SIDED <= ALPHA < 0.5 ** (MIN_SEEDS_ONE_SIDED - 1)


def test_sign_flip_is_absent_where_patterns_are_too_many_to_list_and_stands_in_no_ones_way():
    p = sign_flip_p([1.0] * 23)
    assert np.isnan(p)
    assert np.isnan(sign_flip_p_below([1.0] * 23, 2.0))
    assert rejects(p)


def share_of_false_alarms(draw_noise, *, num_seeds=6, num_studies=20_000):
    noise = draw_noise(np.random.default_rng(4), (num_studies, num_seeds))
    return float(np.mean(sign_flip_p_below(noise, np.zeros(num_studies)) <= ALPHA))


def test_sign_flip_holds_for_symmetric_noise_of_any_shape():
    # Of 64 patterns three may be as extreme: .047. Three standard errors of a share of 20,000 are .0045.
    for draw_noise in (
        lambda draw, size: draw.standard_normal(size),
        lambda draw, size: draw.standard_cauchy(size),
        lambda draw, size: draw.laplace(size=size) * np.array([1, 1, 1, 5, 5, 25.0]),
    ):
        assert share_of_false_alarms(draw_noise) == pytest.approx(3 / 64, abs=0.0045)


def test_sign_flip_does_not_hold_for_skewed_noise():
    """What it assumes: with rare bad seeds, six seeds look good without them far more often than p says."""
    assert share_of_false_alarms(lambda draw, size: draw.exponential(size=size) - 1) > 0.10


def test_a_batch_gives_what_each_study_gives():
    studies = np.random.default_rng(0).normal(0.5, 1, (7, 2, 6))
    batch, below = sign_flip_p(studies), sign_flip_p_below(studies, 1.0)
    for index in np.ndindex(7, 2):
        assert batch[index] == sign_flip_p(studies[index])
        assert below[index] == sign_flip_p_below(studies[index], 1.0)


def test_holm_by_hand():
    # Sorted .01, .03, .04: 3 x .01 = .03; 2 x .03 = .06; 1 x .04 = .04, raised to .06.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]).size == 0


def test_holm_equals_statsmodels():
    ps = np.random.default_rng(1).uniform(0, 0.1, (5, 8))
    for row, adjusted in zip(ps, holm(ps), strict=True):
        assert adjusted == pytest.approx(multipletests(row, method="holm")[1])
