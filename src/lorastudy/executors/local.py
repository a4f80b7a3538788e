"""Workers as subprocesses of this machine, one after another.

A worker is given all folders at once and keeps its base model between them. When it dies over one, the next
worker goes on with the folders after that one: an out-of-memory or a CUDA fault ends a worker, not the suite.
"""

import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from lorastudy.executors.executor import Event, WorkerExit
from lorastudy.executors.following import POLL_SECONDS, Following
from lorastudy.executors.process import WORKER, base_model_of, end_hung, log_tail, worker_process


class LocalExecutor:
    """One worker process at a time; it sees all devices of this machine."""

    def __init__(
        self, *, worker: Sequence[str] = WORKER, environment: Mapping[str, str] | None = None
    ) -> None:
        """`worker` is what the interpreter is told to run; the folders follow. `environment` is set on top of this process's."""
        self._worker = worker
        self._environment = environment or {}
        self._is_stopped = False
        self._is_leaving = False

    def run(self, folders: Sequence[Path]) -> Generator[Event]:
        """Serve the folders in order."""
        waiting = list(folders)
        while waiting and not self._is_leaving:
            first, base_models = waiting[0], map(base_model_of, waiting)
            with worker_process(
                waiting, base_models=base_models, worker=self._worker, environment=self._environment
            ) as process:
                is_alive = True
                while waiting and is_alive:
                    following = Following(waiting.pop(0))
                    yield from self._follow(following, process, log_folder=first)
                    assert following.exit is not None
                    is_alive = following.exit.returncode is None and not self._is_leaving

    @property
    def num_packs_at_once(self) -> int:
        """One."""
        return 1

    def leave(self) -> None:
        """Ask the worker to save what it is at and to leave."""
        self._is_leaving = True

    def stop(self) -> None:
        """End the worker at once, from another thread than the one that runs it: `run` raises InterruptedError."""
        self._is_stopped = True

    def _check_not_stopped(self) -> None:
        if self._is_stopped:
            raise InterruptedError("stopped from outside")

    def _follow(
        self, following: Following, process: subprocess.Popen[bytes], *, log_folder: Path
    ) -> Generator[Event, None, None]:
        """Yield the folder's events until it is served, or the process has died over it or was ended as hung."""
        complaint = ""

        def end_of_worker() -> WorkerExit | None:
            returncode = process.poll()
            if returncode is None:
                return None
            said = "\n".join(filter(None, [complaint, log_tail(log_folder)]))
            return WorkerExit(returncode=returncode, message=said)

        is_told = False
        try:
            while following.exit is None:
                yield from following.new_events(end_of_worker)
                if following.exit is not None:
                    return
                self._check_not_stopped()
                if self._is_leaving and not is_told:
                    is_told = True
                    process.terminate()
                if not complaint and (found := following.patience.complaint()) is not None:
                    complaint = found
                    end_hung(process)
                time.sleep(POLL_SECONDS)
        except BaseException:
            if is_told:
                process.kill()  # asked for the second time: at once
            raise
