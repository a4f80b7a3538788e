"""The memory of a plan's packs: what they need, whether they fit, and which changes would make them fit.

`lorastudy estimate` prints these reports.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorastudy.errors import StudyError
from lorastudy.planning.answers import Answers
from lorastudy.planning.estimate import Estimator, MemoryBudget, PackEstimate, prepare
from lorastudy.planning.packing import PlannedPack
from lorastudy.planning.plan_summary import disk_bytes
from lorastudy.planning.predictions import Suggestion, fewer_arms, suggestions
from lorastudy.planning.study_plan import StudyPlan
from lorastudy.planning.validation_cost import ValidationCost, validation_cost


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """The largest of the packs that differ only in the order of their rows: its estimate, and whether it fits."""

    estimator: Estimator
    estimate: PackEstimate
    nums_experiments: tuple[int, ...]
    """The number of experiments in each of the packs that this one stands for."""
    validation: ValidationCost | None = None
    """What scoring on the way costs; None without such scores."""
    budget: MemoryBudget | None = None
    changes: tuple[Suggestion, ...] = ()
    """Changes that may make the pack fit; empty if it fits, or without a budget."""

    @property
    def fits(self) -> bool | None:
        """Whether the predicted peak is within the budget; None without a budget."""
        if self.budget is None:
            return None
        return self.estimate.prediction.terms.total <= self.budget.budget_bytes

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        estimate, calibration = self.estimate, self.estimate.calibration
        terms = estimate.prediction.terms
        return {
            "num_arms": len(estimate.num_trainable),
            "num_packs": len(self.nums_experiments),
            "num_tokens": estimate.rows.batch.num_tokens,
            "engine": estimate.engine.name,
            "engine_reason": estimate.engine.reason,
            "peak_bytes": terms.total,
            "peak_phase": estimate.prediction.phase,
            "terms_bytes": dict(terms.named()),
            "num_trainable_parameters": sum(estimate.num_trainable.values()),
            "step_seconds": estimate.step_seconds,
            "num_validation_passes": 0 if self.validation is None else self.validation.num_passes,
            "validation_seconds": None if self.validation is None else self.validation.seconds,
            "time_from": None if calibration is None else calibration.source,
            "disk_bytes": disk_bytes(estimate),
            "base_model": self.estimator.settings.base_model,
            "device": self.estimator.machine.device,
            "timed_steps": [] if calibration is None else [vars(point) for point in calibration.points],
            "budget_bytes": None if self.budget is None else self.budget.budget_bytes,
            "fits": self.fits,
            "changes": [vars(change) for change in self.changes],
        }


def pack_reports(
    plan: StudyPlan, answers: Answers, *, budget: MemoryBudget | None = None
) -> list[PackReport]:
    """A report on the largest pack of each data set and batch of the plan.

    Without a budget, the packs are those that this machine runs. A budget is the memory of any device, so all arms that
    can train together are one pack then, and packs with fewer arms are among the changes.

    Raises:
        StudyError: no pack of the plan has a prediction; the message says why.
    """
    prepare(list(plan.predicted.estimators.values()), answers)
    return [
        _report(plan, packs, answers=answers, budget=budget)
        for packs in _alike(plan, is_whole=budget is not None)
    ]


def time_steps(plan: StudyPlan) -> None:
    """Time real steps for each data set and batch of the plan. This loads the base model.

    If nothing is left to run, the packs are all experiments that can train together.

    Timed steps can change the number of arms in a pack, so plan again afterwards.

    Raises:
        StudyError: the base model cannot be loaded, or no pack has a prediction.
    """
    for largest, *_ in _alike(plan, is_whole=not plan.packs):
        plan.predicted.estimators[largest.experiments[0].pack_key].calibrate()


def _alike(plan: StudyPlan, *, is_whole: bool) -> list[list[PlannedPack]]:
    """Packs of experiments that may train together, in groups with the largest peak first.

    With `is_whole`, packs hold all experiments that can train together.
    """
    predicted = plan.predicted
    if is_whole:
        packs = [PlannedPack(experiments=each.experiments) for each in predicted.estimators.values()]
    else:
        packs = [pack for pack in plan.packs if predicted.estimator(pack) is not None]
    if not packs:
        raise StudyError("\n".join(predicted.problems) or "the suite has no pack to estimate")
    groups: dict[str, list[PlannedPack]] = {}
    for pack in packs:
        groups.setdefault(pack.experiments[0].alike_key, []).append(pack)
    return [sorted(group, key=lambda pack: -_peak_bytes(plan, pack)) for group in groups.values()]


def _peak_bytes(plan: StudyPlan, pack: PlannedPack) -> int:
    estimator = plan.predicted.estimators[pack.experiments[0].pack_key]
    return estimator.estimate(pack.experiments).prediction.terms.total


def _report(
    plan: StudyPlan, packs: Sequence[PlannedPack], *, answers: Answers, budget: MemoryBudget | None
) -> PackReport:
    largest = packs[0].experiments
    estimator = plan.predicted.estimators[largest[0].pack_key]
    estimate = estimator.estimate(largest)
    report = PackReport(
        estimator=estimator,
        estimate=estimate,
        validation=validation_cost(largest, estimator, estimate=estimate, rungs=plan.suite.rungs),
        nums_experiments=tuple(len(pack.experiments) for pack in packs),
        budget=budget,
    )
    if budget is None or report.fits:
        return report
    fewer = fewer_arms(estimator, budget_bytes=budget.budget_bytes)
    others = suggestions(largest, answers, budget_bytes=budget.budget_bytes)
    return replace(report, changes=(*([fewer] if fewer else []), *others))
