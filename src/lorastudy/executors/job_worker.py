"""Jobs for a worker that stays: it imports torch once, however many jobs come after one another.

A job that follows from the answer to the last one would otherwise wait for a process of its own, which takes seconds
to start.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lorastudy.errors import DataError, StudyError
from lorastudy.executors.process import LOG_NAME, WORKER, last_words, tell, worker_process
from lorastudy.executors.tail import POLL_SECONDS
from lorastudy.protocol.jobs import RESULT_NAME, Job


class JobWorker:
    """A worker process for one job after another, started with the first one and ended with the block."""

    def __init__(self, *, worker: Sequence[str] = WORKER) -> None:
        """`worker` is what the interpreter is told to run."""
        self._worker = worker
        self._open = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.num_jobs = 0

    def __enter__(self) -> Self:
        self._folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="lorastudy-job-")))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()  # it holds nothing that is wanted, and taking torch apart takes a while
        self._open.__exit__(kind, error, traceback)

    def do(self, job: Job) -> dict[str, Any]:
        """Do a job; return its result.

        Raises:
            DataError: what the job said of the user's data.
            StudyError: what it said of other input.
        """
        folder = self._folder / str(self.num_jobs)
        self.num_jobs += 1
        folder.mkdir()
        job.write(folder)
        process = self._started(job)
        tell(process, [folder])
        while not (folder / RESULT_NAME).exists():
            returncode = process.poll()
            if returncode is not None:
                raise StudyError(f"the worker ended with {returncode}: {_last_words(self._folder)}")
            time.sleep(POLL_SECONDS)
        result: dict[str, Any] = json.loads((folder / RESULT_NAME).read_text(encoding="utf-8"))
        if "error" in result:
            raise (DataError if result.get("is_of_data") else StudyError)(result["error"])
        return result

    def _started(self, job: Job) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = self._open.enter_context(
                worker_process(
                    [self._folder], base_models=[job.base_model], worker=self._worker, takes_more=True
                )
            )
        return self._process


def _last_words(folder: Path) -> str:
    """What the worker said last; its log is kept for who looks into it, since the folder goes."""
    with tempfile.NamedTemporaryFile(prefix="lorastudy-worker-", suffix=".log", delete=False) as kept:
        kept.write((folder / LOG_NAME).read_bytes())
    return last_words(folder, kept_as=Path(kept.name))


def run_job(job: Job) -> dict[str, Any]:
    """Do a job in a worker of its own; return its result.

    Raises:
        StudyError: what the job said of the user's input.
    """
    with JobWorker() as worker:
        return worker.do(job)
