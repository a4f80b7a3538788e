"""All that is computed about one study, once: tables, figures and findings take their numbers from here."""

from collections.abc import Mapping
from dataclasses import dataclass

from lorastudy.analysis.fairness.case import measured_case
from lorastudy.analysis.fairness.finding import LintFinding
from lorastudy.analysis.fairness.lint import blockers, lint
from lorastudy.analysis.frontier import pareto_frontier
from lorastudy.analysis.paired import Comparison, compare_with_reference
from lorastudy.analysis.ranks import RankReturns, rank_returns
from lorastudy.analysis.reference import reference_arm
from lorastudy.analysis.study import Arm, Study
from lorastudy.analysis.summary import EXACT_MATCH, LOSS, TOKEN_ACCURACY, ArmSummary, Metric, summarise_arm

#: Verdicts are about the first; the others are shown beside it.
COMPARED_METRICS = (LOSS, TOKEN_ACCURACY, EXACT_MATCH)


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """One study with its summaries, comparisons and frontier. `reference` is None when nothing completed."""

    study: Study
    summaries: tuple[ArmSummary, ...]
    reference: Arm | None
    comparisons: Mapping[tuple[str, str], tuple[Comparison, ...]]
    """By metric key; empty where the metric was not measured."""
    frontier: tuple[str, ...]
    """Names of the arms on the Pareto frontier of mean held-out loss and mean peak memory."""
    returns: RankReturns | None
    """For a rank ablation with at least two ranks."""
    lint: tuple[LintFinding, ...]
    """What makes the arms unfair to compare."""
    blockers: Mapping[str, str]
    """By arm, why no verdict about it may stand."""

    def summary(self, name: str) -> ArmSummary:
        """The summary of the arm of that name."""
        return next(summary for summary in self.summaries if summary.arm.name == name)

    def comparison(self, name: str, metric: Metric = LOSS) -> Comparison | None:
        """The arm against the reference; None for the reference itself or what was not measured."""
        return next((c for c in self.comparisons.get(metric.key, ()) if c.arm == name), None)

    @property
    def completed(self) -> tuple[ArmSummary, ...]:
        """Summaries of the arms that have at least one completed seed."""
        return tuple(summary for summary in self.summaries if summary.arm.completed)


def analyse(study: Study) -> Analysis:
    """The analysis of one study."""
    summaries = tuple(summarise_arm(arm, study) for arm in study.arms)
    reference, case = reference_arm(study), measured_case(study)
    found = lint(case)
    comparisons = {} if reference is None else _comparisons(study, reference)
    returns = None
    if reference is not None and study.experiment_type == "rank_ablation":
        returns = rank_returns(study, reference, comparisons=comparisons[LOSS.key])
    return Analysis(
        study=study,
        summaries=summaries,
        reference=reference,
        comparisons=comparisons,
        frontier=pareto_frontier(_loss_and_memory(summaries)),
        returns=returns,
        lint=found,
        blockers=blockers(found, case),
    )


def _comparisons(study: Study, reference: Arm) -> dict[tuple[str, str], tuple[Comparison, ...]]:
    return {
        metric.key: compare_with_reference(study, arms=study.arms, reference=reference, metric=metric)
        for metric in COMPARED_METRICS
    }


def _loss_and_memory(summaries: tuple[ArmSummary, ...]) -> dict[str, tuple[float, float]]:
    points = {}
    for summary in summaries:
        loss, memory = summary.score(LOSS), summary.costs.peak_memory_bytes
        if loss is not None and memory is not None:
            points[summary.arm.name] = (memory.mean, loss.mean)
    return points
