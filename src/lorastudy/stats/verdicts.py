"""The words that a comparison may end in, the tests behind them, and the rules by which a comparison gets one.

`better`: one of the two has the better score for new seeds and new items (the pair names it). It takes the two-sided t test
of the two-way estimate, Holm-corrected over the comparisons with one reference, *and* the two-sided sign-flip test of the
seeds. The first keeps the chance that any comparison says "better" without cause at 5 % or below, if the noise between seeds
is roughly normal. The second only needs that noise to be symmetric; its p cannot go below 2 / 2**n, so it takes six seeds.

`as good within the margin`: the arm is worse than the reference by less than a margin that was set before the run. The 95 %
interval of the difference ends below the margin (the one-sided t test at .025), *and* the one-sided sign-flip test passes
at .05, which takes five seeds. The t test has half the level because skewed noise yields this verdict too easily
(`NO_WORSE_ALPHA`). Along a ladder of ranks the tests go in fixed sequence from the largest rank down and stop at the first
failure, which needs no correction for their number; elsewhere Holm corrects. **There is no default margin**: only the user
knows which difference matters, and without a margin nothing is as good. A margin that is a share of the gain is tested with
the noise of that gain (`comparison`). An arm that is better keeps that word. An arm that is worse by less than the margin
is as good within it, and `difference_shown` says that the two are not equal.

`untuned`: the result would be one of the first two, but one of the two arms had no learning rate of its own: its rate was
never varied, or its best rate lies on the edge of those tried. What was shown holds at the rates that were tried. The arm
that was ahead there is named (`ahead`), and nobody wins: at one fixed rate, 4e-5, the effect of rank looked eight times too
small, and the truly best rank won in 3 of 13 models (at 3e-4, in 26 of 28). So "as good" is no safer than "better".

`cannot tell`: neither was shown. The comparison says what would decide it.

`invalid`: the two runs do not compare (other environment, base model, rows or metric version), or the linter found the
comparison unfair.

**What the sign-flip test assumes.** It compares the sum of the differences with the sums under all ways to flip their signs.
Its p is exact where a difference is as likely to be +x as -x: where the noise is symmetric around the true difference,
whatever its shape and however unequal from seed to seed. It needs neither a normal distribution nor a common variance. It
does need symmetry: if one arm has rare bad seeds and the other has none, seeds that miss them agree more often than p says.
Few seeds cannot check that, so verdicts also take the t test. `docs/science.md` shows what remains.

All functions take arrays whose last axis holds the seeds (or the comparisons), so that a simulation of thousands of studies
runs through the same functions that judge one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lorastudy.stats.study import Invalidation

Word = Literal["better", "as good within the margin", "untuned", "cannot tell", "invalid"]
WORDS: tuple[Word, ...] = ("better", "as good within the margin", "untuned", "cannot tell", "invalid")

Floats = npt.NDArray[np.float64]
Shown = npt.NDArray[np.bool_]

ALPHA = 0.05
#: Level of the one-sided t test that an arm is worse by less than the margin: it is shown where the 95 % interval ends below
#: the margin, which is the level of non-inferiority trials (ICH E9, 3.5). At .05, skewed noise passes too often: an arm with
#: rare bad seeds, or few items that matter, looked as good in 7 to 9 % of simulated studies.
NO_WORSE_ALPHA = ALPHA / 2
#: With more seeds, 2**n sign patterns are too many to list, and the t test serves alone.
MAX_SIGN_FLIP_SEEDS = 22
#: The fewest seeds with which the one-sided sign-flip test can reach .05: 1 / 2**5 = .031, 1 / 2**4 = .063. The two-sided
#: test takes `MIN_SEEDS`.
MIN_SEEDS_ONE_SIDED = 5


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules of verdicts besides the data, all fixed before the run.

    `ladder` names arms in the order in which the fixed sequence takes them, the reference left out; with a ladder
    no other arm can be as good within the margin.
    """

    margin: float | None = None
    """In the metric's unit: the largest loss of quality that does not matter."""
    margin_share: float | None = None
    """For a margin that is a share of the reference's gain: that share. `margin` is then its amount, for display."""
    ladder: tuple[str, ...] = ()
    invalidations: Mapping[str, Sequence[Invalidation]] = field(default_factory=dict)
    """By arm. One of the reference's makes every comparison invalid."""
    untuned: frozenset[str] = frozenset()
    """Arms without a learning rate of their own. Against an untuned reference no arm can win either."""


def differences_shown(t_ps: Floats, sign_flip_ps: Floats) -> Shown:
    """Which comparisons of a family show a difference: Holm over the t tests, and the sign-flip test."""
    return rejects(holm(t_ps)) & rejects(sign_flip_ps)


def no_worse_shown(t_ps: Floats, sign_flip_ps: Floats, *, in_sequence: bool) -> Shown:
    """Which comparisons show that an arm is worse by less than the margin.

    In sequence, the last axis is the order of the tests: one that fails ends it, so the chance that any arm beyond
    the margin passes is that of the first such arm.
    """
    if in_sequence:
        passes = (t_ps <= NO_WORSE_ALPHA) & rejects(sign_flip_ps)
        return np.logical_and.accumulate(passes, axis=-1)
    return rejects(holm(t_ps), alpha=NO_WORSE_ALPHA) & rejects(sign_flip_ps)


def word(*, arm_ahead: bool, shown: bool, no_worse: bool) -> Word:
    """The word of a valid comparison of two tuned arms, from what its tests show."""
    if shown and arm_ahead:
        return "better"
    if no_worse:
        return "as good within the margin"
    return "better" if shown else "cannot tell"


def measured_errors() -> list[dict[str, Any]]:
    """How often these rules erred in simulated studies: shares of false "better" and "as good" by `kind` of noise.

    `num_rows` tells draws of recorded rows apart. Written by `benchmarks/simulate_verdicts.py`.
    """
    file = Path(__file__).with_name("verdicts_measured.json")
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return found


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
    """The smallest p that `num_seeds` seeds can give: all-plus and all-minus count, 2 of 2**n patterns."""
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
    """Whether a test rejects. A test that could not be made (NaN: too many seeds to list) counts as rejecting."""
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
    """Tolerance for rounding in sums that are equal in exact arithmetic."""
    room: Floats = 1e-12 * np.abs(values).sum(axis=-1, keepdims=True)
    return room
