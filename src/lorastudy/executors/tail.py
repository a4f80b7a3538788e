"""Following a run folder: its records as they are written, and at last how it ended."""

from collections.abc import Callable, Iterator
from pathlib import Path

from lorastudy.executors.executor import Event, WorkerExit
from lorastudy.executors.hang_timeout import Patience
from lorastudy.protocol.record_lines import RecordReader
from lorastudy.protocol.records import DONE_NAME, RECORDS_NAME

#: Between two looks at a folder.
POLL_SECONDS = 0.05


class Following:
    """One folder while it is being served; whoever follows it looks now and then, until `exit` is there."""

    def __init__(self, folder: Path) -> None:
        self.exit: WorkerExit | None = None
        self.patience = Patience()
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
