"""The outcome of each experiment of a pack, which the worker records exactly once, and stopping on request (SIGTERM).

A request stops training between two steps, and all other work at once. A step or a checkpoint is completed or not begun. All
other work can be repeated.
"""

import math
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from lorastudy.errors import without_tracebacks
from lorastudy.protocol.records import FailureKind, Generation, Outcome, Pack, PackEnd, Record, Score

Emit = Callable[[Record | PackEnd], None]


@dataclass(kw_only=True)
class PackRun:
    """A pack that the worker is running: where its records go, and which experiments have ended."""

    pack: Pack
    folder: Path
    emit: Emit
    sync: Callable[[], int] = lambda: 0
    """Wait until all emitted records are on disk; return the size of their file in bytes."""
    ended: set[str] = field(default_factory=set)
    step: int | None = None
    """The last step that was recorded."""

    def end(self, outcome: Outcome) -> None:
        """Record how an experiment ended. Only the first call counts."""
        if outcome.experiment_id not in self.ended:
            self.ended.add(outcome.experiment_id)
            self.emit(outcome)

    def emit_open(self, records: Iterable[Score | Generation]) -> None:
        """Record measurements of experiments that have not ended. A diverged arm has no score.

        This also detects an arm that diverged in its last step: its scores are not finite.
        """
        for record in records:
            if record.experiment_id in self.ended:
                continue
            if isinstance(record, Score) and not is_finite(record):
                self.end(diverged(record.experiment_id, f"{record.split} {record.metric} was not finite"))
            else:
                self.emit(record)

    def end_together(self, outcomes: Iterable[Outcome]) -> None:
        """Record the outcomes of all open experiments in one line, so that a kill loses all of them or none."""
        fresh = tuple(outcome for outcome in outcomes if outcome.experiment_id not in self.ended)
        if fresh:
            self.emit(PackEnd(outcomes=fresh))
            self.ended.update(outcome.experiment_id for outcome in fresh)

    def stop_rest(self, message: str) -> None:
        """End all open experiments as stopped. A later attempt resumes them."""
        self.end_together(
            Outcome(experiment_id=experiment.id, status="stopped", message=message)
            for experiment in self.pack.experiments
        )

    def fail_rest(self, kind: FailureKind, error: BaseException) -> None:
        """End all open experiments with the same failure."""
        self.end_together(failed(experiment.id, kind, error=error) for experiment in self.pack.experiments)


def failed(experiment_id: str, kind: FailureKind, *, error: BaseException) -> Outcome:
    """The outcome of an experiment that failed, with the traceback."""
    return Outcome(
        experiment_id=experiment_id,
        status="failed",
        failure_kind=kind,
        message=without_tracebacks(str(error)) or type(error).__name__,
        traceback="".join(traceback.format_exception(error)),
    )


def diverged(experiment_id: str, message: str, *, step: int | None = None) -> Outcome:
    """The outcome of an experiment whose numbers are no longer finite."""
    return Outcome(
        experiment_id=experiment_id, status="failed", failure_kind="diverged", message=message, step=step
    )


def is_finite(score: Score) -> bool:
    """Whether the score and all its items are finite."""
    return all(math.isfinite(value) for value in (score.value, *score.items))


class Stopped(BaseException):
    """The worker was asked to stop. Not an `Exception`, so that no library catches it."""


class Stop:
    """Whether someone asked the worker to stop, and whether it may stop at any moment."""

    def __init__(self) -> None:
        self.is_requested = False
        self._is_deferred = False

    def listen(self) -> None:
        """From now on, treat SIGTERM as a request. A second one ends the process at once."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._request)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """In this context, a request takes effect at the next `check` or at the end of the block."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        self.check()

    def check(self) -> None:
        """Stop if there was a request.

        Raises:
            Stopped: there was a request.
        """
        if self.is_requested:
            raise Stopped

    def _request(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a signal handler
        self.is_requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not self._is_deferred:
            raise Stopped
