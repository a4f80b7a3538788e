"""The seam between the control side and the machines: folders go out, records come back."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lorastudy.protocol.records import Record


@dataclass(frozen=True, kw_only=True)
class WorkerExit:
    """A worker served a folder to its end, or died over it.

    `returncode` is None if it finished the folder, else the exit code of the process. Then `message` has the end of its log,
    without tracebacks, and the path of the log.
    """

    returncode: int | None
    message: str = ""

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it (below 0, or above 128 as in a shell). Then its pack is not to blame."""
        return self.returncode is not None and not 0 <= self.returncode <= 128


Event = tuple[Path, Record | WorkerExit]


class Executor(Protocol):
    """Runs workers. Each folder's events come in order and end with its `WorkerExit`."""

    @property
    def num_packs_at_once(self) -> int:
        """How many folders it serves at a time. A suite is cut into at least so many packs, so that no worker is idle."""
        ...

    @property
    def hands_over(self) -> bool:
        """Whether moving arms between packs saves time: it does where a step takes as long as all its arms together."""
        ...

    def run(self, folders: Sequence[Path]) -> Generator[Event]:
        """Serve folders that hold a `pack.json`; yield their events as they come.

        Workers may stay for the next call. Closing the iterator ends them.
        """
        ...

    def leave(self) -> None:
        """Ask the workers to stop, and start no other; `run` then ends with their exits.

        It may be called from a signal handler during `run`.
        """
        ...

    def close(self) -> None:
        """End the workers that stayed, if any."""
        ...
