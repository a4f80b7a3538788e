"""The seam between the runner and the machines: folders go out, records come back."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lorastudy.protocol.records import Record


@dataclass(frozen=True, kw_only=True)
class WorkerExit:
    """A worker served a folder to its end, or died over it.

    `returncode` is None when it is done with the folder; otherwise what the process ended with, and `message` says what
    it wrote last, without tracebacks, and where its log is.
    """

    returncode: int | None
    message: str = ""

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it (below zero, or 128 and more as a shell has it), which says nothing of its pack."""
        return self.returncode is not None and not 0 <= self.returncode <= 128


Event = tuple[Path, Record | WorkerExit]


class Executor(Protocol):
    """Runs workers. Each folder's events come in order and end with its `WorkerExit`."""

    @property
    def num_packs_at_once(self) -> int:
        """How many folders it can serve side by side; a suite is cut into so many packs, that none stands idle."""
        ...

    @property
    def hands_over(self) -> bool:
        """Whether arms are worth moving between packs on the way: where a step takes as long as its arms together."""
        ...

    def run(self, folders: Sequence[Path]) -> Generator[Event]:
        """Serve folders that hold a `pack.json`; yield what comes of them as it comes.

        Workers may stay for the next run. Closing the iterator ends them.
        """
        ...

    def leave(self) -> None:
        """Ask the workers under way to leave, and start no other; `run` then ends with their exits.

        May be called from a signal handler while `run` is under way.
        """
        ...

    def close(self) -> None:
        """End the workers that stayed; where none is left it does nothing."""
        ...
