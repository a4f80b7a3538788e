"""One worker process on this machine at a time.

A worker stays alive between calls of `run` and keeps its base model, so that a search or a race does not load libraries
again in every phase. It may start before its first folder is known, while the suite is planned. If it dies, a new
worker takes the remaining folders: running out of memory or a CUDA fault ends a worker, not the suite.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Generator, Mapping, Sequence
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
from lorastudy.protocol.jobs import LOG_NAME, OWN_LOG_VARIABLE


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
        self._early_folder: Path | None = None

    def start_workers(self, base_models: Collection[str]) -> None:
        """Start the worker, unless there is one. Its log goes into the first folder that it serves."""
        if self._process is None and not self._is_leaving:
            temporary = tempfile.TemporaryDirectory(prefix="lorastudy-worker-")
            self._early_folder = Path(self._open.enter_context(temporary))
            self._launch([self._early_folder], base_models=frozenset(base_models))

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
        """End the worker, and give it time to exit by itself. A worker that has served no folder is ended at once."""
        if self._process is not None and self._early_folder == self._log_folder:
            self._process.kill()
        self._process, self._early_folder = None, None
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
            self._launch(folders, base_models=base_models)
        elif self._log_folder == self._early_folder:
            self._log_folder = folders[0]
        assert self._process is not None
        return self._process

    def _launch(self, folders: Sequence[Path], *, base_models: frozenset[str]) -> None:
        self._base_models, self._log_folder = base_models, folders[0]
        own_log = {OWN_LOG_VARIABLE: "1"} if folders[0] == self._early_folder else {}
        self._process = self._open.enter_context(
            worker_process(
                folders,
                base_models=base_models,
                worker=self._worker,
                environment={**self._environment, **own_log},
                takes_more=True,
            )
        )

    def _log_tail(self) -> str:
        """The end of the worker's log. What a worker that started early wrote before its first folder is put there."""
        if self._early_folder is not None and not (self._log_folder / LOG_NAME).exists():
            shutil.copyfile(self._early_folder / LOG_NAME, self._log_folder / LOG_NAME)
        return log_tail(self._log_folder)

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
            text = "\n".join(filter(None, [hang, self._log_tail()]))
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
