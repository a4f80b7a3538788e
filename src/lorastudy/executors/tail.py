"""RunFolderTail a run folder: its records as they are written, and at last how it ended."""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lorastudy.executors.executor import Event, WorkerExit
from lorastudy.protocol.records import DONE_NAME, RECORDS_NAME, PackStep, Record, RecordReader

#: Between two looks at a folder.
POLL_SECONDS = 0.05

#: A worker in training may take so many times its median step, but at least so long.
NUM_MEDIANS = 20.0

LEAST_SECONDS = 300.0

#: A worker that does anything else.
QUIET_SECONDS = 3600.0

#: What the message of a worker that was ended for its silence begins with.
HUNG = "hung"


class HangTimeout:
    """The silence of one worker over one folder."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard = clock()
        self._seconds: list[float] = []
        self._is_training = False

    def hear(self, record: Record) -> None:
        """Take note of a record."""
        self._heard = self._clock()
        self._is_training = isinstance(record, PackStep) and record.step < record.num_steps
        if isinstance(record, PackStep):
            self._seconds.append(record.seconds)

    @property
    def limit(self) -> float:
        """Seconds that it may be silent now."""
        if not self._is_training:
            return QUIET_SECONDS
        return max(LEAST_SECONDS, NUM_MEDIANS * statistics.median(self._seconds))

    def complaint(self) -> str | None:
        """What is wrong if it has been silent for too long; None while it may be."""
        silent = self._clock() - self._heard
        if silent <= self.limit:
            return None
        what = "no step" if self._is_training else "no word"
        median = f", its median step took {statistics.median(self._seconds):.3g} s" if self._seconds else ""
        return f"{HUNG}: {what} for {silent:.0f} s{median}"


class RunFolderTail:
    """One folder while it is being served; whoever follows it looks now and then, until `exit` is there."""

    def __init__(self, folder: Path) -> None:
        self.exit: WorkerExit | None = None
        self.patience = HangTimeout()
        self._folder = folder
        self._reader = RecordReader(folder / RECORDS_NAME)

    def new_events(self, end_of_worker: Callable[[], WorkerExit | None]) -> Iterator[Event]:
        """What was written since the last look; the folder's `WorkerExit` is the last event.

        `end_of_worker` says how the worker ended, None while it lives. The torn last line of a dead worker is
        dropped: what it was about to say did not get said.
        """
        # In this order: a worker that has ended will not be done any later, and what it wrote before it ended or
        # was done is there to be read now.
        end = end_of_worker()
        is_done = (self._folder / DONE_NAME).exists()
        try:
            for record in self._reader.read_new():
                self.patience.hear(record)
                yield self._folder, record
        except ValueError as error:
            # What is left of the folder cannot be trusted; the experiments it left open count as crashed.
            end, is_done = WorkerExit(returncode=1, message=f"{RECORDS_NAME} is damaged: {error}"), False
        self.exit = WorkerExit(returncode=None) if is_done else end
        if self.exit is not None:
            yield self._folder, self.exit
