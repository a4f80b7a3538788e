"""Workers as subprocesses of this machine, one after another.

A worker stays from run to run and keeps its base model: a search or a race that sends folders round after round does not
wait each time until libraries are loaded. When it dies over a folder, the next worker goes on with the folders after that
one: what the system kills for its memory, and a CUDA fault, end a worker and not the suite.
"""

import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from lorastudy.executors.executor import Event, WorkerExit
from lorastudy.executors.process import WORKER, base_model_of, end_hung, log_tail, tell, worker_process
from lorastudy.executors.tail import POLL_SECONDS, RunFolderTail


class LocalExecutor:
    """One worker process at a time; it sees all devices of this machine."""

    def __init__(
        self, *, worker: Sequence[str] = WORKER, environment: Mapping[str, str] | None = None
    ) -> None:
        """`worker` is what the interpreter is told to run; it is told of the folders at its standard input.

        `environment` is set on top of this process's.
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
                following = RunFolderTail(waiting[0])
                # One at a time: a worker that is not to go on, or whose records are damaged, begins no other.
                tell(process, [waiting.pop(0)])
                yield from self._follow(following, process)
                assert following.exit is not None
                if following.exit.returncode is not None:
                    process.kill()
                    self.close()
        except BaseException:
            self._process = None
            self._open.__exit__(*sys.exc_info())  # at once, whatever it is at
            raise

    @property
    def num_packs_at_once(self) -> int:
        """One."""
        return 1

    @property
    def hands_over(self) -> bool:
        """There is nobody to hand over to."""
        return False

    def leave(self) -> None:
        """Ask the worker to save what it is at and to leave."""
        self._is_leaving = True

    def close(self) -> None:
        """End the worker, which is given time to leave by itself."""
        self._process = None
        self._open.close()

    def stop(self) -> None:
        """End the worker at once, from another thread than the one that runs it: `run` raises InterruptedError."""
        self._is_stopped = True

    def _process_for(self, folders: Sequence[Path]) -> subprocess.Popen[bytes]:
        """The worker that is there, or another where it has died, or where others need another environment."""
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

    def _follow(
        self, following: RunFolderTail, process: subprocess.Popen[bytes]
    ) -> Generator[Event, None, None]:
        """Yield the folder's events until it is served, or the process has died over it or was ended as hung."""
        complaint = ""

        def end_of_worker() -> WorkerExit | None:
            returncode = process.poll()
            if returncode is None:
                return None
            said = "\n".join(filter(None, [complaint, log_tail(self._log_folder)]))
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
