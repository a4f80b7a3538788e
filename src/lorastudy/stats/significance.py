"""The sign-flip test of few seeds, the levels at which verdicts are shown, and the correction for many of them.

**What the sign-flip test assumes.** It compares the sum of the differences with the sums under all ways to flip their
signs, so its p is exact where a difference is as likely to be +x as -x: where the noise is symmetric around the true
difference, of whatever shape and however unequal from seed to seed. It needs no normal distribution and no common
variance. It does need symmetry: where one arm has rare bad seeds that the other has not, the seeds at hand agree without
them more often than its p says. With few seeds nothing can check that, so verdicts also take the t test, and "as good"
takes it at half the level (`NO_WORSE_ALPHA`). `docs/science.md` shows what remains.

Everything here takes arrays whose last axis holds the seeds (or the comparisons), so that a simulation of
thousands of studies runs through the very functions that judge one.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ALPHA = 0.05
#: Of the one-sided t test that an arm is worse by less than the margin: shown where the 95 % interval ends below the margin,
#: which is the level of non-inferiority trials (ICH E9, 3.5). The other half is for skewed noise. An arm with rare bad
#: seeds, or few items that matter, looks as good too often by a t test at .05: 7 to 9 % of simulated studies.
NO_WORSE_ALPHA = ALPHA / 2
#: More seeds than this make 2**n sign patterns too many to list; the t test serves alone.
MAX_SIGN_FLIP_SEEDS = 22
#: The fewest seeds with which the two-sided sign-flip test can reach .05: 2 / 2**6 = .031, 2 / 2**5 = .063.
MIN_SEEDS = 6
#: And the one-sided: 1 / 2**5 = .031, 1 / 2**4 = .063.
MIN_SEEDS_ONE_SIDED = 5


def sign_flip_p(differences: npt.ArrayLike) -> Floats:
    """Two-sided p, exact for symmetric noise: the share of all 2**n sign patterns whose |sum| is at least the observed one.

    Equal to `scipy.stats.permutation_test(..., permutation_type="samples")` when that enumerates. NaN beyond
    `MAX_SIGN_FLIP_SEEDS` seeds.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.shape[-1] > MAX_SIGN_FLIP_SEEDS:
        return np.full(values.shape[:-1], np.nan)
    sums = _half_of_the_sums(values)
    observed = np.abs(values.sum(axis=-1, keepdims=True))
    share: Floats = np.mean(np.abs(sums) >= observed - _tolerance(values), axis=-1)
    return share


def sign_flip_p_below(differences: npt.ArrayLike, bound: npt.ArrayLike) -> Floats:
    """One-sided p for "the differences lie below the bound", exact for symmetric noise: small where they do.

    The share of all 2**n sign patterns of `differences - bound` whose sum is at most the observed one. Equal to
    `scipy.stats.permutation_test(..., permutation_type="samples", alternative="less")` when that enumerates.
    """
    values = np.asarray(differences, dtype=np.float64) - np.asarray(bound, dtype=np.float64)[..., None]
    if values.shape[-1] > MAX_SIGN_FLIP_SEEDS:
        return np.full(values.shape[:-1], np.nan)
    sums = _half_of_the_sums(values)
    observed = values.sum(axis=-1, keepdims=True) + _tolerance(values)
    share: Floats = (np.mean(sums <= observed, axis=-1) + np.mean(-sums <= observed, axis=-1)) / 2
    return share


def smallest_sign_flip_p(num_seeds: int) -> float:
    """What `num_seeds` seeds can show at best: both all-plus and all-minus count, 2 of 2**n patterns."""
    return min(1.0, 2.0 ** (1 - num_seeds))


def holm(ps: npt.ArrayLike) -> Floats:
    """Holm's step-down adjusted p values along the last axis, in the order given.

    Equal to R's `p.adjust(p, "holm")` and `statsmodels.stats.multitest.multipletests(p, method="holm")`.
    """
    values = np.asarray(ps, dtype=np.float64)
    order = np.argsort(values, axis=-1, kind="stable")
    steps = np.arange(values.shape[-1], 0, -1)
    raised = np.maximum.accumulate(np.take_along_axis(values, order, axis=-1) * steps, axis=-1)
    adjusted = np.empty_like(values)
    np.put_along_axis(adjusted, order, np.minimum(raised, 1.0), axis=-1)
    return adjusted


def rejects(p: npt.ArrayLike, *, alpha: float = ALPHA) -> npt.NDArray[np.bool_]:
    """Whether a test rejects. One that could not be made (NaN: too many seeds to list) stands in no one's way."""
    values = np.asarray(p, dtype=np.float64)
    return np.isnan(values) | (values <= alpha)


def _half_of_the_sums(values: Floats) -> Floats:
    """Sums under the sign patterns that keep the first sign; the other half are their negatives."""
    sums = values[..., :1]
    for position in range(1, values.shape[-1]):
        value = values[..., position : position + 1]
        sums = np.concatenate([sums + value, sums - value], axis=-1)
    return sums


def _tolerance(values: Floats) -> Floats:
    """Room for rounding in sums that are equal in exact arithmetic."""
    room: Floats = 1e-12 * np.abs(values).sum(axis=-1, keepdims=True)
    return room
