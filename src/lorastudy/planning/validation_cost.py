"""What scoring on the way will cost: how often a pack's validation rows are scored before its end, and for how long.

A pass over the validation rows takes `FORWARD_SHARE` of the time that a training step over as many tokens would take.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorastudy.data.batches import steps_of
from lorastudy.planning.estimate import Estimator, PackEstimate
from lorastudy.protocol.records import DataSummary
from lorastudy.report.numbers import duration, plural
from lorastudy.suite.eval_points import eval_points, steps_between
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.question import rung_step

#: A training step is a forward pass and a backward pass of about its length, since the base is frozen. Measured on 2 busy
#: cores with 1 to 6 arms: 0.22 to 0.77 of a step's time per token, median 0.44 (docs/log.md).
FORWARD_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class ValidationCost:
    """The passes over the validation rows of one pack, before its end."""

    num_passes: int
    seconds: float | None
    """Of all these passes; None if no step was timed."""

    def __str__(self) -> str:
        """Such as `scores on the way: 8 times, about 40 s`."""
        how_long = "" if self.seconds is None else f", about {duration(self.seconds)}"
        return f"scores on the way: {plural(self.num_passes, 'time')}{how_long}"


def validation_cost(
    experiments: Sequence[Experiment],
    estimator: Estimator,
    *,
    estimate: PackEstimate,
    rungs: Sequence[float] = (),
) -> ValidationCost | None:
    """The cost for a pack of these experiments; None if they are not scored on the way, or their rows were not read."""
    by_split = {read.summary.split: read.summary for read in estimator.rows_read}
    if not {"train", "eval"} <= by_split.keys():
        return None
    lengths = {each.id: _num_steps(each, train=by_split["train"]) for each in experiments}
    longest = max(lengths.values())
    steps = {rung_step(rung, num_steps=longest) for rung in rungs}
    for each in experiments:
        steps |= set(eval_points(each.settings, num_steps=lengths[each.id]))
    if not steps:
        return None
    seconds = None
    if estimate.calibration is not None:
        num_tokens = by_split["eval"].num_tokens * len(experiments)
        seconds = len(steps) * FORWARD_SHARE * estimate.calibration.step_seconds(num_tokens)
    return ValidationCost(num_passes=len(steps), seconds=seconds)


def without_points(experiments: Sequence[Experiment], estimator: Estimator) -> list[tuple[str, int]]:
    """The arms whose training is no longer than their `eval_steps`, each with its number of steps."""
    train = next((read.summary for read in estimator.rows_read if read.summary.split == "train"), None)
    if train is None:
        return []
    found: dict[str, int] = {}
    for each in experiments:
        every, num_steps = each.settings.eval_steps, _num_steps(each, train=train)
        if every is not None and steps_between(every, num_steps=num_steps) >= num_steps:
            found[each.arm] = num_steps
    return list(found.items())


def total(costs: Iterable[ValidationCost | None]) -> ValidationCost | None:
    """The cost of several packs, one after another; None if none has any."""
    known = [cost for cost in costs if cost is not None]
    if not known:
        return None
    seconds = [cost.seconds for cost in known if cost.seconds is not None]
    return ValidationCost(
        num_passes=sum(cost.num_passes for cost in known),
        seconds=sum(seconds) if len(seconds) == len(known) else None,
    )


def _num_steps(experiment: Experiment, *, train: DataSummary) -> int:
    return steps_of(experiment.settings, num_rows=train.num_rows_in_all)
