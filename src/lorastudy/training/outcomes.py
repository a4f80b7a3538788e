"""What has ended in a pack, and how: the worker's word on each experiment, once."""

import math
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lorastudy.records import FailureKind, Generation, Outcome, Pack, Record, Score

Emit = Callable[[Record], None]


@dataclass(kw_only=True)
class PackRun:
    """One pack on its way: what has ended, and how long each part took."""

    pack: Pack
    folder: Path
    emit: Emit
    ended: set[str] = field(default_factory=set)

    def end(self, outcome: Outcome) -> None:
        """Record how an experiment ended; the first word counts."""
        if outcome.experiment_id not in self.ended:
            self.ended.add(outcome.experiment_id)
            self.emit(outcome)

    def emit_open(self, records: Iterable[Score | Generation]) -> None:
        """Record what was measured of experiments that have not ended; a diverged arm has no score.

        An arm whose last step broke it shows that here: its scores are not numbers.
        """
        for record in records:
            if record.experiment_id in self.ended:
                continue
            if isinstance(record, Score) and not is_finite(record):
                self.end(diverged(record.experiment_id, f"{record.split} {record.metric} was not finite"))
            else:
                self.emit(record)

    def fail_rest(self, kind: FailureKind, error: BaseException) -> None:
        """End every experiment that has not ended with the same failure."""
        for experiment in self.pack.experiments:
            self.end(failed(experiment.id, kind, error=error))


def failed(experiment_id: str, kind: FailureKind, *, error: BaseException) -> Outcome:
    """The end of an experiment that could not be finished, with the traceback."""
    return Outcome(
        experiment_id=experiment_id,
        status="failed",
        failure_kind=kind,
        message=str(error) or type(error).__name__,
        traceback="".join(traceback.format_exception(error)),
    )


def diverged(experiment_id: str, message: str, *, step: int | None = None) -> Outcome:
    """The end of an experiment whose numbers were no longer finite."""
    return Outcome(
        experiment_id=experiment_id, status="failed", failure_kind="diverged", message=message, step=step
    )


def is_finite(score: Score) -> bool:
    """Whether the score and every item of it is a number."""
    return all(math.isfinite(value) for value in (score.value, *score.items))
