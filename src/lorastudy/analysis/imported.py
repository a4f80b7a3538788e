"""What can be told from results of other tools, by the rules that hold for one's own.

They become a study of their own, so the linter judges them and, where an arm has several seeds, they are paired
and judged as any other. Of a single seed nothing is known about the noise between seeds: no verdict is possible.
What is left is the noise of the items. With the number of items known, a share has an interval, and two shares can
or cannot be told apart, as two trained adapters and not as two configurations.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorastudy.analysis.comparison import Comparison
from lorastudy.analysis.fairness.case import ArmFacts, Case
from lorastudy.analysis.fairness.finding import LintFinding
from lorastudy.analysis.fairness.lint import lint, untuned
from lorastudy.analysis.fairness.rates import METHOD_KEY
from lorastudy.analysis.paired import compare_with_reference
from lorastudy.analysis.proportions import Share, ShareDifference, corrected, difference, share_of
from lorastudy.analysis.reference import reference_arm
from lorastudy.analysis.study import Study, split_studies
from lorastudy.analysis.summary import Metric, Spread, scores_by_seed
from lorastudy.analysis.verdicts import Rules
from lorastudy.tracker.views import ExperimentResult, ImportedResult, ScoreValue

SPLIT = "imported"


@dataclass(frozen=True, kw_only=True)
class ImportedArm:
    """One arm of imported results on the primary metric."""

    name: str
    results: tuple[ImportedResult, ...]
    scores: Spread | None
    share: Share | None
    """Of a single result whose metric is a share of so many items; None for any other."""
    from_best: ShareDifference | None
    """To the best share observed; None for that one itself, and where there is no share."""


@dataclass(frozen=True, kw_only=True)
class ImportedAnalysis:
    """One suite of imported results. Arms stand in order of the primary metric, the best observed first."""

    suite_name: str
    results: tuple[ImportedResult, ...]
    metric: Metric
    study: Study
    arms: tuple[ImportedArm, ...]
    lint: tuple[LintFinding, ...]
    comparisons: tuple[Comparison, ...]
    """Paired over seeds, against the first arm of the file; empty where no two arms share two seeds."""

    @property
    def shares(self) -> tuple[ImportedArm, ...]:
        """The arms whose result is a share of items."""
        return tuple(arm for arm in self.arms if arm.share is not None)

    def not_told_from_best(self, *, of_all: bool) -> tuple[ImportedArm, ...]:
        """Arms that cannot be told from the best share observed, itself among them; `of_all` with Holm's correction."""
        return tuple(
            arm
            for arm in self.shares
            if arm.from_best is None
            or not (arm.from_best.told_apart_of_all if of_all else arm.from_best.told_apart)
        )

    @property
    def neighbours_told_apart(self) -> int:
        """In the order of the shares: how many arms can be told from the next one below, each pair taken alone."""
        shares = [arm.share for arm in self.shares if arm.share is not None]
        return sum(difference(one, below).told_apart for one, below in itertools.pairwise(shares))


def analyse_imported(results: Sequence[ImportedResult]) -> ImportedAnalysis:
    """The analysis of one suite's imported results, on the primary metric of the first."""
    primary = results[0].scores[0]
    metric = Metric(
        split=SPLIT,
        name=primary.metric,
        title=primary.metric[:1].upper() + primary.metric[1:],
        unit=primary.unit,
        lower_is_better=primary.lower_is_better,
    )
    study = imported_study(results)
    found = lint(Case(study=study, facts=_facts(results, study), metric=metric))
    return ImportedAnalysis(
        suite_name=results[0].suite_name,
        results=tuple(results),
        metric=metric,
        study=study,
        arms=_arms(results, study, metric=metric),
        lint=found,
        comparisons=_comparisons(study, metric=metric, rules=Rules(untuned=untuned(found))),
    )


def imported_study(results: Sequence[ImportedResult]) -> Study:
    """The results as a study. One whose seed nobody recorded has a number that no other has, so nothing pairs with it."""
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
        status="completed",
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


def _arms(results: Sequence[ImportedResult], study: Study, *, metric: Metric) -> tuple[ImportedArm, ...]:
    by_id = {result.id: result for result in results}
    mine = {arm.name: tuple(by_id[result.experiment_id] for result in arm.results) for arm in study.arms}
    shares = {name: share for name, group in mine.items() if (share := _share(group, metric)) is not None}
    sign = 1 if metric.lower_is_better else -1
    best = min(shares, key=lambda name: sign * shares[name].value, default=None)
    others = [name for name in shares if name != best]
    apart = corrected([difference(shares[name], shares[best]) for name in others if best is not None])
    from_best = dict(zip(others, apart, strict=True))
    arms = [
        ImportedArm(
            name=arm.name,
            results=mine[arm.name],
            scores=Spread.of(scores_by_seed(arm, study, metric=metric).values()),
            share=shares.get(arm.name),
            from_best=from_best.get(arm.name),
        )
        for arm in study.arms
    ]
    scored = [arm for arm in arms if arm.scores is not None]
    ordered = sorted(scored, key=lambda arm: sign * statistics.fmean(arm.scores.values if arm.scores else ()))
    return (*ordered, *(arm for arm in arms if arm.scores is None))


def _share(group: Sequence[ImportedResult], metric: Metric) -> Share | None:
    if len(group) != 1 or metric.unit != "share":
        return None
    score = next((score for score in group[0].scores if score.metric == metric.name), None)
    return None if score is None or score.num_items is None else share_of(score.value, score.num_items)


def _comparisons(study: Study, *, metric: Metric, rules: Rules) -> tuple[Comparison, ...]:
    reference = reference_arm(study)
    if reference is None:
        return ()
    found = compare_with_reference(study, arms=study.arms, reference=reference, metric=metric, rules=rules)
    return found if any(comparison.n > 1 for comparison in found) else ()
