"""The seam between the control side and the machines: folders go out, records come back."""

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lorastudy.protocol.records import Record


@dataclass(frozen=True, kw_only=True)
class WorkerExit:
    """The end of a worker's work on a folder: it finished the folder or died.

    `returncode` is None if it finished the folder, else the exit code of the process. If it died, `message` has the end
    of its log, without tracebacks, and the path of the log.
    """

    returncode: int | None
    message: str = ""

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it (below 0, or above 128 as in a shell). Then the pack is probably not the cause."""
        return self.returncode is not None and not 0 <= self.returncode <= 128


Event = tuple[Path, Record | WorkerExit]


class Executor(Protocol):
    """Runs workers. Each folder's events come in order and end with its `WorkerExit`."""

    @property
    def num_packs_at_once(self) -> int:
        """The number of folders that run at a time. A suite has at least this many packs, to keep all workers busy."""
        ...

    @property
    def hands_over(self) -> bool:
        """Whether moving arms between packs saves time. It does if the time of a step is proportional to its arms."""
        ...

    @property
    def num_threads(self) -> int | None:
        """The number of CPU threads that each worker is started with; None if the executor leaves it as it is."""
        ...

    def start_workers(self, base_models: Collection[str]) -> None:
        """Start workers for these base models already, so that they load their libraries while the caller plans.

        An executor whose workers start with their folder does nothing.
        """
        ...

    def run(self, folders: Sequence[Path]) -> Generator[Event]:
        """Serve folders that hold a `pack.json`; yield their events as they arrive.

        Workers may stay alive for the next call. Closing the iterator ends them.
        """
        ...

    def leave(self) -> None:
        """Ask the workers to stop, and start no new ones. `run` ends after their exits.

        A signal handler may call this during `run`.
        """
        ...

    def close(self) -> None:
        """End all workers that are still alive."""
        ...
