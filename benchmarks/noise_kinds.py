"""Verdicts under noise that is not as nice as the tests would have it: the rule that was, the rule that is, and others.

Of each kind of noise (`verdict_studies.KINDS`, and rows drawn from recorded ones) how often equal arms are told apart, how often
an arm that is a whole margin behind is called as good within it, and what is found of a true difference or equality of
four standard errors. The rule that was took every row as one of its own and held "as good" to the one-sided .05; all else
is as the product judges today.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import special

from benchmarks.verdict_studies import (
    KINDS,
    PROFILES,
    RECORDED,
    SEED,
    SYMMETRIC,
    VERY_SKEWED,
    Design,
    Floats,
    Row,
    Studies,
    by_seed,
    chunks,
    recorded_rows,
)
from lorastudy.stats.twoway import TwoWay, two_way
from lorastudy.stats.verdicts import (
    ALPHA,
    NO_WORSE_ALPHA,
    differences_shown,
    holm,
    no_worse_shown,
    rejects,
    sign_flip_p,
    sign_flip_p_below,
)

_SHARE_OF_GAIN = 0.2
#: How far apart arms are whose difference or equality is to be found, in standard errors.
DISTANCE = 4.0
_NUM_RESAMPLES = 199

Shown = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Noise of many studies, reduced to what the tests take; a shift of all differences shifts only the means."""

    estimate: TwoWay
    seeds: Floats
    """Means over items: (studies, arms, seeds)."""

    def shifted(self, by: Floats) -> "Judged":
        """With so much added to every arm's differences."""
        moved = replace(self.estimate, mean=self.estimate.mean + by)
        return Judged(estimate=moved, seeds=self.seeds + by[..., None])

    @property
    def errors(self) -> Floats:
        """The true standard error of each arm's mean."""
        spread: Floats = self.estimate.mean.std(axis=0)
        return spread


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What decides: whether rows count by their clusters, and the level of "as good"."""

    name: str
    by_cluster: bool
    no_worse_alpha: float

    def better(self, judged: Judged) -> Shown:
        """Which arms are told from the reference, (studies, arms)."""
        return differences_shown(judged.estimate.p_value(), sign_flip_p(judged.seeds))

    def as_good(self, judged: Judged) -> Shown:
        """Which arms lie below 0, each tested alone."""
        flips = sign_flip_p_below(judged.seeds, np.zeros(judged.seeds.shape[:-1]))
        if self.no_worse_alpha == NO_WORSE_ALPHA:
            passes = [
                no_worse_shown(p[:, None], flip[:, None], in_sequence=True)[:, 0]
                for p, flip in zip(judged.estimate.p_below(0.0).T, flips.T, strict=True)
            ]
            return np.stack(passes, axis=-1)
        return (judged.estimate.p_below(0.0) <= self.no_worse_alpha) & rejects(flips)

    def as_good_in_family(self, judged: Judged) -> Shown:
        """The same for all arms together, without a ladder."""
        flips = sign_flip_p_below(judged.seeds, np.zeros(judged.seeds.shape[:-1]))
        ps = judged.estimate.p_below(0.0)
        if self.no_worse_alpha == NO_WORSE_ALPHA:
            return no_worse_shown(ps, flips, in_sequence=False)
        return rejects(holm(ps), alpha=self.no_worse_alpha) & rejects(flips)


BEFORE = Rule(name="before", by_cluster=False, no_worse_alpha=ALPHA)
NOW = Rule(name="now", by_cluster=True, no_worse_alpha=NO_WORSE_ALPHA)


def noise_kinds(num_studies: int) -> list[Row]:
    """Both errors and the power of both rules, of each kind of noise, from half the studies."""
    return [row for design in _designs() for row in _both_rules(design, max(20, num_studies // 2))]


def _designs() -> list[Design]:
    simulated = [
        Design(profile=profile, num_seeds=num_seeds, num_items=200, num_arms=5, kind=kind)
        for kind in KINDS
        for profile in PROFILES[:3]
        for num_seeds in (5, 6, 8, 12)
    ]
    num_arms = len(recorded_rows().items) - 1
    recorded = [
        Design(
            profile=PROFILES[0], num_seeds=num_seeds, num_items=num_items, num_arms=num_arms, kind=RECORDED
        )
        for num_items in (50, 120)
        for num_seeds in (5, 6, 8, 12)
    ]
    return [*simulated, *recorded]


def _both_rules(design: Design, num_studies: int) -> list[Row]:
    every = list(chunks(design, num_studies))
    rows = []
    for rule in (BEFORE, NOW):
        plain = joined([judged(studies, by_cluster=rule.by_cluster) for studies in every])
        of_gain = joined([judged(_less_the_share(studies), by_cluster=rule.by_cluster) for studies in every])
        rows.append(
            {"kind": design.kind.name, **design.row, "rule": rule.name, "num_studies": num_studies}
            | {
                "coverage": _covered(plain),
                "better": float(rule.better(plain).any(axis=-1).mean()),
                "as_good": rule.as_good(plain).mean(axis=0).tolist(),
                "as_good_in_family": float(rule.as_good_in_family(plain).any(axis=-1).mean()),
                "as_good_of_gain": rule.as_good(of_gain).mean(axis=0).tolist(),
            }
            | _powers(rule, plain)
        )
    return rows


def judged(studies: Studies, *, by_cluster: bool = True) -> Judged:
    """What the tests take of a chunk of studies."""
    num_studies, num_arms, _, num_items = studies.differences.shape
    weights = np.broadcast_to(studies.weights, (num_studies, num_arms, num_items))
    groups = studies.groups if by_cluster else None
    return Judged(estimate=two_way(studies.differences, weights, groups=groups), seeds=by_seed(studies))


def joined(parts: list[Judged]) -> Judged:
    """The chunks of one design as one."""
    first = parts[0].estimate
    return Judged(
        estimate=replace(
            first,
            mean=np.concatenate([part.estimate.mean for part in parts]),
            seed_variance=np.concatenate([part.estimate.seed_variance for part in parts]),
            item_variance=np.concatenate([part.estimate.item_variance for part in parts]),
            cell_variance=np.concatenate([part.estimate.cell_variance for part in parts]),
        ),
        seeds=np.concatenate([part.seeds for part in parts]),
    )


def _less_the_share(studies: Studies) -> Studies:
    """Differences less a fifth of the gain: what a margin of a fifth of the gain is tested by."""
    assert studies.gains is not None
    return replace(studies, differences=studies.differences - _SHARE_OF_GAIN * studies.gains)


def _covered(plain: Judged) -> float:
    """How often the 95 % interval of an arm holds the truth."""
    low, high = plain.estimate.interval()
    return float(((low <= 0) & (high >= 0)).mean())


def _powers(rule: Rule, plain: Judged) -> Row:
    """What is found of one arm alone that is four standard errors worse, or equal with a margin of four."""
    one = Judged(
        estimate=replace(
            plain.estimate,
            **{
                name: getattr(plain.estimate, name)[:, :1]
                for name in ("mean", "seed_variance", "item_variance", "cell_variance")
            },
        ),
        seeds=plain.seeds[:, :1],
    )
    apart = np.broadcast_to(DISTANCE * one.errors, one.estimate.mean.shape)
    return {
        "power_better": float(rule.better(one.shifted(apart)).mean()),
        "power_as_good": float(rule.as_good(one.shifted(-apart)).mean()),
    }


# --- other rules for "as good" ----------------------------------------------------------------------------


def other_rules(num_studies: int) -> list[Row]:
    """False "as good" and its power, of one arm alone, by rules that were tried; from an eighth, as bootstraps are slow."""
    num_arms = len(recorded_rows().items) - 1
    designs = [
        Design(profile=PROFILES[1], num_seeds=6, num_items=200, num_arms=num_arms, kind=kind)
        for kind in (SYMMETRIC, KINDS[1], VERY_SKEWED)
    ]
    designs += [
        Design(profile=PROFILES[0], num_seeds=6, num_items=num_items, num_arms=num_arms, kind=RECORDED)
        for num_items in (50, 120)
    ]
    return [row for design in designs for row in _by_other_rules(design, max(20, num_studies // 8))]


def _by_other_rules(design: Design, num_studies: int) -> list[Row]:
    every = list(chunks(design, num_studies))
    rows = []
    for name, t_limit in OTHER_RULES.items():
        counted = every
        if name == ROWS_COUNT_ALIKE:
            counted = [_even(studies, is_recorded=design.kind.is_recorded) for studies in every]
        plain = joined([judged(studies) for studies in counted])
        limits = np.concatenate([t_limit(studies) for studies in counted])
        apart = np.broadcast_to(DISTANCE * plain.errors, plain.estimate.mean.shape)
        called = [
            _t_of(shifted) < limits if name == WILD else (_t_of(shifted) < limits) & _flips(shifted)
            for shifted in (plain, plain.shifted(-apart))
        ]
        rows.append(
            {"kind": design.kind.name, **design.row, "rule": name, "num_studies": num_studies}
            | {"as_good": float(called[0].mean()), "power_as_good": float(called[1].mean())}
        )
    return rows


def _t_of(one: Judged) -> Floats:
    t: Floats = one.estimate.mean / one.estimate.standard_error
    return t


def _flips(one: Judged) -> Shown:
    return rejects(sign_flip_p_below(one.seeds, np.zeros(one.seeds.shape[:-1])))


def _even(studies: Studies, *, is_recorded: bool) -> Studies:
    """With all rows counting the same, and noise whose mean is 0 that way: that of recorded rows is 0 by token only."""
    num_arms = studies.differences.shape[1]
    mean = recorded_rows().items[:num_arms].mean(axis=-1) if is_recorded else np.zeros(num_arms)
    return Studies(
        differences=studies.differences - mean[:, None, None], weights=np.ones_like(studies.weights)
    )


def _student(studies: Studies, *, alpha: float) -> Floats:
    limit: Floats = special.stdtrit(judged(studies).estimate.degrees_of_freedom, alpha)
    return limit


def _corrected_for_skew(studies: Studies) -> Floats:
    """Hall's transformation of t by the skewness of the items (1992, Journal of the Royal Statistical Society B 54).

    T' = T + b T**2 + b**2 T**3 / 3 + a, with the third cumulant k of the mean over items, a = k / (6 V**1.5) and
    b = (k / 3 - I C) / V**1.5; C = sum p(i) z(i) with the item's share p and term z is the part of a ratio, whose
    error and weight go together. Solved for the T at which T' is the quantile of t.
    """
    estimate = judged(studies).estimate
    shares = studies.weights / studies.weights.sum(axis=-1, keepdims=True)
    terms = shares * (studies.differences.mean(axis=-2) - estimate.mean[..., None])
    m = terms.shape[-1]
    cumulant = (terms**3).sum(axis=-1) * m**2 / ((m - 1) * (m - 2))
    scale = estimate.variance**1.5
    a = cumulant / (6 * scale)
    b = (cumulant / 3 - estimate.items_alone * (shares * terms).sum(axis=-1)) / scale
    quantile = special.stdtrit(estimate.degrees_of_freedom, ALPHA)
    b = np.where(np.abs(b) < 1e-9, 1e-9, b)
    limit: Floats = (np.cbrt(1 + 3 * b * (quantile - a)) - 1) / b
    return limit


def _pooled(studies: Studies) -> Floats:
    """T of .05 where the variance is that of all arms together, if larger than the arm's own."""
    estimate = judged(studies).estimate
    together = np.maximum(estimate.variance, estimate.variance.mean(axis=-1, keepdims=True))
    limit: Floats = _student(studies, alpha=ALPHA) * np.sqrt(together / estimate.variance)
    return limit


def _bootstrapped(studies: Studies) -> Floats:
    """The .05 quantile of the t of seeds and items that are drawn anew with replacement."""
    draw = np.random.default_rng(SEED)
    num_seeds, num_items = studies.differences.shape[-2:]
    middle = judged(studies).estimate.mean
    ts = []
    for _ in range(_NUM_RESAMPLES):
        seeds, items = draw.integers(num_seeds, size=num_seeds), draw.integers(num_items, size=num_items)
        drawn = studies.differences[:, :, seeds][..., items]
        again = judged(Studies(differences=drawn, weights=studies.weights[..., items])).estimate
        ts.append((again.mean - middle) / np.maximum(again.standard_error, 1e-12))
    limit: Floats = np.quantile(np.stack(ts), ALPHA, axis=0)
    return limit


def _wild(studies: Studies) -> Floats:
    """The .05 quantile of the t of the same noise with the signs of seeds and of items drawn anew."""
    draw = np.random.default_rng(SEED)
    num_seeds, num_items = studies.differences.shape[-2:]
    mean = judged(studies).estimate.mean[..., None, None]
    seeds = by_seed(studies)[..., None] - mean
    items = studies.differences.mean(axis=-2, keepdims=True) - mean
    cells = studies.differences - seeds - items - mean
    ts = []
    for _ in range(_NUM_RESAMPLES):
        of_seeds = draw.choice([-1.0, 1.0], size=(num_seeds, 1))
        of_items = draw.choice([-1.0, 1.0], size=num_items)
        noise = seeds * of_seeds + items * of_items + cells * of_seeds * of_items
        ts.append(_t_of(judged(Studies(differences=noise, weights=studies.weights))))
    limit: Floats = np.quantile(np.stack(ts), ALPHA, axis=0)
    return limit


ROWS_COUNT_ALIKE = "t at .05, all rows count the same"
WILD = "wild bootstrap of t at .05, without the sign flip"
#: Below which t an arm is as good, by study and arm.
OTHER_RULES: Mapping[str, Callable[[Studies], Floats]] = {
    "t at .05 (before)": lambda studies: _student(studies, alpha=ALPHA),
    "t at .025 (now)": lambda studies: _student(studies, alpha=NO_WORSE_ALPHA),
    ROWS_COUNT_ALIKE: lambda studies: _student(studies, alpha=ALPHA),
    "t at .05, corrected for the skewness of items": _corrected_for_skew,
    "t at .05, variance of all arms if larger": _pooled,
    "two-way bootstrap of t at .05": _bootstrapped,
    WILD: _wild,
}
