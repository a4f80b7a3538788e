"""One worker process on this machine at a time.

A worker stays alive between calls of `run` and keeps its base model, so that a search or a race does not load libraries
again in every phase. If it dies, a new worker takes the remaining folders: running out of memory or a CUDA fault ends a
worker, not the suite.
"""

import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from lorastudy.executors.executor import Event, WorkerExit
from lorastudy.executors.process import (
    WORKER,
    base_model_of,
    end_hung,
    log_tail,
    send_folders,
    threads_in,
    worker_process,
)
from lorastudy.executors.tail import POLL_SECONDS, RunFolderTail


class LocalExecutor:
    """One worker process at a time, which sees all devices of this machine."""

    def __init__(
        self, *, worker: Sequence[str] = WORKER, environment: Mapping[str, str] | None = None
    ) -> None:
        """`worker` are the arguments of the Python interpreter. The worker reads folders from its standard input.

        `environment` is added to this process's environment variables.
        """
        self._worker = worker
        self._environment = environment or {}
        self._is_stopped = False
        self._is_leaving = False
        self._open = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._base_models: frozenset[str] = frozenset()
        self._log_folder = Path()

    def run(self, folders: Sequence[Path]) -> Generator[Event]:
        """Serve the folders in order."""
        waiting = list(folders)
        try:
            while waiting and not self._is_leaving:
                process = self._process_for(waiting)
                tail = RunFolderTail(waiting[0])
                # One at a time, so that a worker that must stop, or whose records are damaged, begins no other folder.
                send_folders(process, [waiting.pop(0)])
                yield from self._follow(tail, process)
                assert tail.exit is not None
                if tail.exit.returncode is not None:
                    process.kill()
                    self.close()
        except BaseException:
            self._process = None
            self._open.__exit__(*sys.exc_info())  # ends the worker at once
            raise

    @property
    def num_packs_at_once(self) -> int:
        """One."""
        return 1

    @property
    def hands_over(self) -> bool:
        """False: only one pack runs at a time."""
        return False

    @property
    def num_threads(self) -> int | None:
        """`OMP_NUM_THREADS` of the worker's environment; None if it has the one of this process."""
        return threads_in(self._environment)

    def leave(self) -> None:
        """Ask the worker to save a checkpoint and stop."""
        self._is_leaving = True

    def close(self) -> None:
        """End the worker, and give it time to exit by itself."""
        self._process = None
        self._open.close()

    def stop(self) -> None:
        """End the worker at once, from another thread: `run` then raises InterruptedError."""
        self._is_stopped = True

    def _process_for(self, folders: Sequence[Path]) -> subprocess.Popen[bytes]:
        """The current worker, or a new one if it died or these base models need another environment."""
        base_models = frozenset(map(base_model_of, folders))
        is_alive = self._process is not None and self._process.poll() is None
        if not (is_alive and base_models <= self._base_models):
            self.close()
            self._base_models, self._log_folder = base_models, folders[0]
            self._process = self._open.enter_context(
                worker_process(
                    folders,
                    base_models=base_models,
                    worker=self._worker,
                    environment=self._environment,
                    takes_more=True,
                )
            )
        assert self._process is not None
        return self._process

    def _check_not_stopped(self) -> None:
        if self._is_stopped:
            raise InterruptedError("stopped from outside")

    def _follow(self, tail: RunFolderTail, process: subprocess.Popen[bytes]) -> Generator[Event, None, None]:
        """Yield the folder's events until the worker finishes it or dies. A worker that hangs is ended."""
        hang = ""

        def end_of_worker() -> WorkerExit | None:
            returncode = process.poll()
            if returncode is None:
                return None
            text = "\n".join(filter(None, [hang, log_tail(self._log_folder)]))
            return WorkerExit(returncode=returncode, message=text)

        is_asked_to_stop = False
        try:
            while tail.exit is None:
                yield from tail.new_events(end_of_worker)
                if tail.exit is not None:
                    return
                self._check_not_stopped()
                if self._is_leaving and not is_asked_to_stop:
                    is_asked_to_stop = True
                    process.terminate()
                if not hang and (found := tail.hang_timeout.problem()) is not None:
                    hang = found
                    end_hung(process)
                time.sleep(POLL_SECONDS)
        except BaseException:
            if is_asked_to_stop:
                process.kill()  # the second request: end it at once
            raise
