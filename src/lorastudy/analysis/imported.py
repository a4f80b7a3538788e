"""What results of other tools show, by the rules that hold for your own.

They become a study. The linter checks it, findings that invalidate leave no verdict, and a grid of learning rates is read as
one: each configuration stands at its best rate. Arms that share seeds are paired: with the reference that the user names, else
with the best of the others (`stats.best`), never with whichever row came first.

A single seed says nothing about the noise between seeds, so no verdict is possible. What is left is the noise of the items. If
the number of items is known, a share has an interval, and Hsu's comparisons show which arms may be the best, as trained adapters
and not as configurations. Shares of different environments or base models are never compared.

Two arms that were scored on the same items are paired, and with the items known their difference would be more precise than
here, where they count as two independent samples.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorastudy.analysis.overview import pairs_in_cost
from lorastudy.errors import StudyError
from lorastudy.lint.case import ArmFacts, Case, LintFinding
from lorastudy.lint.lint import invalidations, lint, untuned
from lorastudy.lint.rates import METHOD_KEY
from lorastudy.stats.best import AgainstBest, against_the_best, bounds_against_the_best
from lorastudy.stats.comparison import Comparison, compare_with_reference
from lorastudy.stats.rate_choice import compared_arms, rates_of
from lorastudy.stats.reference import is_reference_named, reference_arm
from lorastudy.stats.study import Invalidation, Study, StudyArm, split_studies
from lorastudy.stats.summary import Metric, Spread, scores_by_seed
from lorastudy.stats.verdicts import Rules
from lorastudy.store.views import ExperimentResult, ImportedResult, ScoreValue
from lorastudy.suite.wording import did_you_mean

SPLIT = "imported"

ALPHA = 0.05
#: Shares are of hundreds of items, so their variance counts as known and quantiles take many degrees of freedom.
_MANY_DEGREES = 10_000


@dataclass(frozen=True, kw_only=True)
class Share:
    """A number of right answers out of a number of items."""

    num_right: int
    num_items: int

    @property
    def value(self) -> float:
        """The share."""
        return self.num_right / self.num_items

    @property
    def standard_error(self) -> float:
        """sqrt(p (1 - p) / n): for new items of the same kind, with the adapter as it was trained."""
        return float((self.value * (1 - self.value) / self.num_items) ** 0.5)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, which keeps its coverage at shares near 0 and 1."""
        from statsmodels.stats.proportion import proportion_confint

        low, high = proportion_confint(self.num_right, self.num_items, alpha=ALPHA, method="wilson")
        return (max(0.0, float(low)), min(1.0, float(high)))


@dataclass(frozen=True, kw_only=True)
class ShareDifference:
    """One share minus another, as if of independent items."""

    difference: float
    interval: tuple[float, float]
    """Newcombe's 95 % interval, made of the two Wilson intervals."""
    p: float
    """Two-sided, of the z test with the pooled share."""

    @property
    def is_shown(self) -> bool:
        """Whether the two differ by more than the noise of their items, at the 5 % level for this pair alone."""
        return self.p < ALPHA


@dataclass(frozen=True, kw_only=True)
class ImportedArm:
    """One configuration of imported results, at its best learning rate, on the primary metric."""

    name: str
    results: tuple[ImportedResult, ...]
    scores: Spread | None
    share: Share | None
    """The share of a single result whose metric is a share of a known number of items; else None."""
    against_best: AgainstBest | None
    """The share against the best of the other shares of its environment and base model; None if there is no other."""
    num_rates: int
    """Number of learning rates at which the configuration was run."""
    num_diverged: int

    @property
    def may_be_best(self) -> bool:
        """Whether, given the noise of the items, its share may be the highest of its environment and base model."""
        return self.against_best is None or not self.against_best.is_behind


@dataclass(frozen=True, kw_only=True)
class ImportedAnalysis:
    """One suite of imported results. Arms are in order of the primary metric, the best observed first."""

    suite_name: str
    results: tuple[ImportedResult, ...]
    metric: Metric
    study: Study
    arms: tuple[ImportedArm, ...]
    lint: tuple[LintFinding, ...]
    untuned: frozenset[str]
    reference: str | None
    """The arm that the user named."""
    comparisons: tuple[Comparison, ...]
    """Paired over seeds, against the named reference; empty without one, or if no two arms share two seeds."""
    invalid: Mapping[str, str]
    """Arms without a verdict, and why: the linter found them unfair to compare, or runs at their best rate diverged."""
    against_best: Mapping[str, AgainstBest]
    """Without a named reference: each arm whose seeds can be paired, against the best of the others."""

    @property
    def shares(self) -> tuple[ImportedArm, ...]:
        """The arms whose result is a share of items."""
        return tuple(arm for arm in self.arms if arm.share is not None)

    @property
    def may_be_best(self) -> tuple[ImportedArm, ...]:
        """The arms whose share may be the highest, given the noise of the items."""
        return tuple(arm for arm in self.shares if arm.may_be_best)

    @property
    def num_distinct_neighbours(self) -> int:
        """In order of the shares: how many arms differ from the next one below, each pair tested by itself."""
        shares = [arm.share for arm in self.shares if arm.share is not None]
        return sum(difference(one, below).is_shown for one, below in itertools.pairwise(shares))

    @property
    def num_groups(self) -> int:
        """Number of groups (environment and base model) within which shares are compared."""
        return len({_group(arm.results[0]) for arm in self.shares})


def analyse_imported(results: Sequence[ImportedResult], *, reference: str | None = None) -> ImportedAnalysis:
    """The analysis of one suite's imported results, on the primary metric of the first.

    Raises:
        StudyError: no arm has the name of the reference, or every run diverged.
    """
    metric = _primary_metric(results)
    study = imported_study(results)
    if reference is not None and not is_reference_named(study, named=reference):
        known = [arm.name for arm in study.arms]
        near = did_you_mean(reference, known) or f"; there are {', '.join(known[:10])}"
        raise StudyError(f"--reference {reference}: no imported arm has that name{near}")
    case = Case(study=study, facts=_facts(results, study), metric=metric, named_reference=reference)
    found = lint(case)
    blocked = invalidations(found)
    compared = compared_arms(study, metric=metric)
    invalid = _without_verdict(compared, blocked)
    comparisons: tuple[Comparison, ...] = ()
    if reference is not None:
        rules = Rules(invalidations=blocked, untuned=untuned(found))
        comparisons = _comparisons(study, compared, metric=metric, reference=reference, rules=rules)
    return ImportedAnalysis(
        suite_name=results[0].suite_name,
        results=tuple(results),
        metric=metric,
        study=study,
        arms=_arms(results, study, compared=compared, metric=metric),
        lint=found,
        untuned=untuned(found),
        reference=reference,
        comparisons=comparisons,
        invalid=invalid,
        against_best={}
        if reference is not None
        else _against_best(study, [arm for arm in compared if arm.name not in invalid], metric=metric),
    )


def _without_verdict(
    compared: Sequence[StudyArm], blocked: Mapping[str, Sequence[Invalidation]]
) -> dict[str, str]:
    """The compared arms that the linter found unfair to compare, or that diverged at their best rate, with the reason."""
    why = {}
    for arm in compared:
        reasons = [one.why for one in blocked.get(arm.name, ())]
        num_diverged = len(arm.results) - len(arm.completed)
        if num_diverged:
            reasons.append(f"{num_diverged} of {len(arm.results)} runs diverged")
        if reasons:
            why[arm.name] = "; ".join(reasons)
    return why


def _primary_metric(results: Sequence[ImportedResult]) -> Metric:
    primary = next((result.scores[0] for result in results if result.scores and not result.is_diverged), None)
    if primary is None:
        raise StudyError(
            f"{results[0].suite_name}: every imported run diverged, so there is nothing to compare"
        )
    return Metric(
        split=SPLIT,
        name=primary.metric,
        title=primary.metric[:1].upper() + primary.metric[1:],
        unit=primary.unit,
        lower_is_better=primary.lower_is_better,
    )


def imported_study(results: Sequence[ImportedResult]) -> Study:
    """The results as a study. A result without a recorded seed gets a unique number, so that nothing pairs with it."""
    compares_methods = len({result.settings.get(METHOD_KEY) for result in results}) > 1
    kind = "method_comparison" if compares_methods else "imported"
    (study,) = split_studies(
        _as_result(result, seed=-1 - number if result.seed is None else result.seed, kind=kind)
        for number, result in enumerate(results)
    )
    return study


def _as_result(result: ImportedResult, *, seed: int, kind: str) -> ExperimentResult:
    scores = {
        (SPLIT, score.metric): ScoreValue(
            value=score.value, unit=score.unit, version=1, num_items=score.num_items
        )
        for score in result.scores
    }
    return ExperimentResult(
        experiment_id=result.id,
        suite_name=result.suite_name,
        name=result.location,
        arm=result.arm,
        experiment_type=kind,
        seed=seed,
        settings=result.settings,
        status="failed" if result.is_diverged else "completed",
        failure_kind="diverged" if result.is_diverged else None,
        scores=scores,
        sources=result.sources,
        started_at=result.imported_at,
        train_seconds=result.costs.get("train_seconds"),
    )


def _facts(results: Sequence[ImportedResult], study: Study) -> Mapping[str, ArmFacts]:
    by_id = {result.id: result for result in results}
    facts = {}
    for arm in study.arms:
        costs = by_id[arm.results[0].experiment_id].costs
        number = costs.get("num_trainable_parameters")
        facts[arm.name] = ArmFacts(num_trainable_parameters=None if number is None else round(number))
    return facts


def _arms(
    results: Sequence[ImportedResult], study: Study, *, compared: Sequence[StudyArm], metric: Metric
) -> tuple[ImportedArm, ...]:
    by_id = {result.id: result for result in results}
    mine = {arm.name: tuple(by_id[result.experiment_id] for result in arm.results) for arm in compared}
    shares = {name: share for name, group in mine.items() if (share := _share(group, metric)) is not None}
    groups: dict[tuple[str | None, str | None], dict[str, Share]] = {}
    for name, share in shares.items():
        groups.setdefault(_group(mine[name][0]), {})[name] = share
    bounds: dict[str, AgainstBest] = {}
    for group in groups.values():
        bounds |= shares_against_the_best(group, cost_sign=metric.cost_sign)
    arms = [
        ImportedArm(
            name=arm.name,
            results=mine[arm.name],
            scores=Spread.of(scores_by_seed(arm, study, metric=metric).values()),
            share=shares.get(arm.name),
            against_best=bounds.get(arm.name),
            num_rates=len(rates_of(study, arm)),
            num_diverged=sum(result.is_diverged for result in mine[arm.name]),
        )
        for arm in compared
    ]
    sign = metric.cost_sign
    scored = [arm for arm in arms if arm.scores is not None]
    ordered = sorted(scored, key=lambda arm: sign * statistics.fmean(arm.scores.values if arm.scores else ()))
    return (*ordered, *(arm for arm in arms if arm.scores is None))


def _group(result: ImportedResult) -> tuple[str | None, str | None]:
    """Environment and base model: shares are compared only if they agree in both."""
    base_model = result.sources.get("base_model") or result.settings.get("base_model")
    return (result.sources.get("environment"), base_model)


def _share(group: Sequence[ImportedResult], metric: Metric) -> Share | None:
    if len(group) != 1 or metric.unit != "share":
        return None
    score = next((score for score in group[0].scores if score.metric == metric.name), None)
    return None if score is None or score.num_items is None else share_of(score.value, score.num_items)


def _comparisons(
    study: Study, compared: Sequence[StudyArm], *, metric: Metric, reference: str, rules: Rules
) -> tuple[Comparison, ...]:
    named = reference_arm(study, named=reference, metric=metric)
    if named is None:
        return ()
    found = compare_with_reference(study, arms=compared, reference=named, metric=metric, rules=rules)
    return found if any(comparison.n > 1 for comparison in found) else ()


def _against_best(study: Study, arms: Sequence[StudyArm], *, metric: Metric) -> Mapping[str, AgainstBest]:
    """Each arm that shares seeds with another, in cost; empty where no two do."""
    pairs, num_seeds = pairs_in_cost(study, arms, metric=metric, items={})
    paired = [arm.name for arm in arms if any(arm.name in pair for pair in pairs)]
    return against_the_best(pairs, arms=paired, num_seeds=num_seeds) if pairs else {}


def share_of(value: float, num_items: int) -> Share:
    """The share whose value is this mean of right and wrong answers."""
    return Share(num_right=round(value * num_items), num_items=num_items)


def difference(one: Share, other: Share) -> ShareDifference:
    """`one` minus `other`."""
    from statsmodels.stats.proportion import confint_proportions_2indep, proportions_ztest

    counts, totals = [one.num_right, other.num_right], [one.num_items, other.num_items]
    pooled = sum(counts) / sum(totals)
    # with nothing right, or nothing wrong, on both sides there is no variance to divide by, and no difference
    p = 1.0 if pooled in {0.0, 1.0} else float(proportions_ztest(counts, totals)[1])
    low, high = confint_proportions_2indep(
        counts[0], totals[0], counts[1], totals[1], method="newcomb", compare="diff", alpha=ALPHA
    )
    return ShareDifference(difference=one.value - other.value, interval=(float(low), float(high)), p=p)


def shares_against_the_best(shares: Mapping[str, Share], *, cost_sign: int) -> dict[str, AgainstBest]:
    """Each share's cost less the lowest cost of the others, with simultaneous 95 % bounds (Hsu; see `best`).

    The difference of two shares has the standard error sqrt(p (1 - p) / n + q (1 - q) / m), with Agresti and Caffo's two
    added right and two added wrong answers, which keep it valid near 0 and 1. The bounds hold together, whichever share is the
    best. Among 63 equal shares of 1,319 items, comparing each by itself with the highest one calls 22 different.
    """
    names = list(shares)
    if len(names) < 2:
        return {}
    items = np.array([share.num_items for share in shares.values()]) + 2.0
    right = np.array([share.num_right for share in shares.values()]) + 1.0
    variances = (right / items) * (1 - right / items) / items
    costs = np.array([share.value for share in shares.values()]) * cost_sign
    lower, upper = bounds_against_the_best(
        costs[:, None] - costs[None, :],
        np.sqrt(variances[:, None] + variances[None, :]),
        degrees=_MANY_DEGREES,
        alpha=ALPHA,
    )
    return {
        name: AgainstBest(arm=name, lower=float(lower[index]), upper=float(upper[index]))
        for index, name in enumerate(names)
    }
