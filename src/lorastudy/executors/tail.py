"""Following a run folder: yields new records and the worker's exit, and detects a worker that hangs."""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lorastudy.executors.executor import Event, WorkerExit
from lorastudy.protocol.records import DONE_NAME, RECORDS_NAME, PackStep, Record, RecordReader

#: Pause between two polls of a folder.
POLL_SECONDS = 0.05

#: A worker in training hangs if it is silent for this many times its median step, but at least `LEAST_SECONDS`.
NUM_MEDIANS = 20.0

LEAST_SECONDS = 300.0

#: Outside training a worker hangs if it is silent for this long.
QUIET_SECONDS = 3600.0

#: The first word of the message of a worker that was ended because it hung.
HUNG = "hung"


class HangTimeout:
    """Decides when a silent worker hangs.

    In training a worker reports every step, so its own median step is the measure. A generous minimum allows for a
    checkpoint of many gigabytes or a busy machine. Before the first and after the last step a worker loads, profiles
    and evaluates, so only a long silence counts. The clock is monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard = clock()
        self._seconds: list[float] = []
        self._is_training = False

    def record_seen(self, record: Record) -> None:
        """Restart the wait after a record."""
        self._heard = self._clock()
        self._is_training = isinstance(record, PackStep) and record.step < record.num_steps
        if isinstance(record, PackStep):
            self._seconds.append(record.seconds)

    @property
    def limit(self) -> float:
        """Seconds that the worker may be silent now."""
        if not self._is_training:
            return QUIET_SECONDS
        return max(LEAST_SECONDS, NUM_MEDIANS * statistics.median(self._seconds))

    def problem(self) -> str | None:
        """A message if the worker has been silent for too long, else None."""
        silent = self._clock() - self._heard
        if silent <= self.limit:
            return None
        what = "no step" if self._is_training else "no record"
        median = f", its median step took {statistics.median(self._seconds):.3g} s" if self._seconds else ""
        return f"{HUNG}: {what} for {silent:.0f} s{median}"


class RunFolderTail:
    """The events of one folder while a worker serves it. Call `new_events` repeatedly until `exit` is set."""

    def __init__(self, folder: Path) -> None:
        self.exit: WorkerExit | None = None
        self.hang_timeout = HangTimeout()
        self._folder = folder
        self._reader = RecordReader(folder / RECORDS_NAME)

    def new_events(self, end_of_worker: Callable[[], WorkerExit | None]) -> Iterator[Event]:
        """Yield the records since the last call. The folder's `WorkerExit` is the last event.

        `end_of_worker` returns the exit of the worker, or None while it is alive. The unfinished last line of a dead
        worker is dropped.
        """
        # Check the exit before reading: a worker that has ended writes no more, so the loop reads all its records.
        end = end_of_worker()
        is_done = (self._folder / DONE_NAME).exists()
        try:
            for record in self._reader.read_new():
                self.hang_timeout.record_seen(record)
                yield self._folder, record
        except ValueError as error:
            # The rest of the file cannot be trusted. Experiments without an outcome count as crashed.
            end, is_done = WorkerExit(returncode=1, message=f"{RECORDS_NAME} is damaged: {error}"), False
        self.exit = WorkerExit(returncode=None) if is_done else end
        if self.exit is not None:
            yield self._folder, self.exit
