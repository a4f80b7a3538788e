"""Workers as subprocesses of this machine, one after another.

A worker is given all folders at once and keeps its base model between them. When it dies over one, the next
worker goes on with the folders after that one: an out-of-memory or a CUDA fault ends a worker, not the suite.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from lorastudy.errors import StudyError
from lorastudy.executors.executor import Event, WorkerExit
from lorastudy.executors.following import POLL_SECONDS, Following
from lorastudy.executors.process import WORKER, base_model_of, log_tail, worker_process
from lorastudy.jobs import EvaluateJob


class LocalExecutor:
    """One worker process at a time; it sees all devices of this machine."""

    def __init__(self, *, worker: Sequence[str] = WORKER) -> None:
        """`worker` is what the interpreter is told to run; the folders follow."""
        self._worker = worker

    def run(self, folders: Sequence[Path]) -> Generator[Event]:
        """Serve the folders in order."""
        waiting = list(folders)
        while waiting:
            first, base_models = waiting[0], map(base_model_of, waiting)
            with worker_process(waiting, base_models=base_models, worker=self._worker) as process:
                is_alive = True
                while waiting and is_alive:
                    following = Following(waiting.pop(0))
                    yield from _follow(following, process, log_folder=first)
                    assert following.exit is not None
                    is_alive = following.exit.returncode is None


def run_job(job: EvaluateJob) -> dict[str, Any]:
    """Do a job in a worker of its own; return its result.

    Raises:
        StudyError: what the job said of the user's input.
    """
    with tempfile.TemporaryDirectory(prefix="lorastudy-job-") as name:
        folder = Path(name)
        job.write(folder)
        with worker_process([folder], base_models=[job.base_model]) as process:
            returncode = process.wait()
        if returncode != 0:
            raise StudyError(f"the worker ended with {returncode}:\n{log_tail(folder)}")
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if "error" in result:
        raise StudyError(result["error"])
    return result


def _follow(
    following: Following, process: subprocess.Popen[bytes], *, log_folder: Path
) -> Generator[Event, None, None]:
    """Yield the folder's events until it is served or the process has died over it."""

    def end_of_worker() -> WorkerExit | None:
        returncode = process.poll()
        if returncode is None:
            return None
        return WorkerExit(returncode=returncode, message=log_tail(log_folder))

    while following.exit is None:
        yield from following.new_events(end_of_worker)
        if following.exit is None:
            time.sleep(POLL_SECONDS)
