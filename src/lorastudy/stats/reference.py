"""Which arm the others are compared with.

The suite may name it; otherwise the design does, never the outcome, which would favour the arm that looks best (winner's
curse). Only the learning rate of the reference is chosen by results.
"""

from collections.abc import Sequence

from lorastudy.stats.rate_choice import best_of, rates_of
from lorastudy.stats.study import STUDIED_KEYS, Study, StudyArm
from lorastudy.stats.summary import LOSS, Metric

#: The largest rank, and the highest precision.
_TYPES_WITH_A_REFERENCE = frozenset({"rank_ablation", "quantization_study"})


def reference_arm(study: Study, *, named: str | None = None, metric: Metric = LOSS) -> StudyArm | None:
    """The arm that the others are compared with; None if nothing completed.

    The arm that the suite names, if one of its runs completed; otherwise by design. Rank ablation: the largest rank.
    Quantization: the highest precision. Else the first arm of the suite. An arm without a completed run cannot serve. If a
    built-in experiment type was run at several learning rates, the reference stands at its best rate by the metric, as every
    rank of `rank_ladder` does: the order of rates in a list is no design. A custom type may study the rate itself and keeps
    its first arm.
    """
    completed = [arm for arm in study.reported_arms if arm.completed]
    designed = _by_name(completed, named) or _by_design(study, completed)
    if designed is None or study.experiment_type not in STUDIED_KEYS:
        return designed
    return best_of(study, rates_of(study, designed), metric=metric) or designed


def is_reference_named(study: Study, *, named: str | None = None) -> bool:
    """Whether the reference was named before the run: by the suite, or by the design of its experiment type.

    Being the first arm of a suite does not count.
    """
    completed = [arm for arm in study.reported_arms if arm.completed]
    return study.experiment_type in _TYPES_WITH_A_REFERENCE or _by_name(completed, named) is not None


def planned_reference(study: Study, *, named: str | None = None) -> StudyArm | None:
    """The arm that is meant to be the reference, whether or not it has completed; of several rates the first."""
    return _by_name(study.reported_arms, named) or _by_design(study, study.reported_arms)


def missing_reference(study: Study) -> StudyArm | None:
    """The reference by design if no seed of it completed at any rate, else None."""
    designed = _by_design(study, study.reported_arms)
    if designed is None or any(arm.completed for arm in rates_of(study, designed)):
        return None
    return designed


def _by_name(arms: Sequence[StudyArm], name: str | None) -> StudyArm | None:
    """The arm of that name, with or without its learning rate in the name; of several rates the first."""
    return None if name is None else next((arm for arm in arms if arm.is_named(name)), None)


def _by_design(study: Study, arms: Sequence[StudyArm]) -> StudyArm | None:
    """The first arm in the order of the suite; of a rank ablation, the first with the largest rank."""
    place = {name: number for number, name in enumerate(study.suite_order)}
    in_order = sorted(arms, key=lambda arm: place.get(arm.name, 0))
    if study.experiment_type == "rank_ablation":
        return max(in_order, key=lambda arm: int(arm.settings["lora_rank"]), default=None)
    return next(iter(in_order), None)
