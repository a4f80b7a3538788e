"""Workers as subprocesses of this machine, one after another.

A worker is given all folders at once and keeps its base model between them. When it dies over one, the next
worker goes on with the folders after that one: an out-of-memory or a CUDA fault ends a worker, not the suite.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorastudy.errors import StudyError
from lorastudy.executors.executor import Event, WorkerExit
from lorastudy.jobs import EvaluateJob
from lorastudy.records import DONE_NAME, RECORDS_NAME, RecordReader

POLL_SECONDS = 0.05
FAREWELL_SECONDS = 10.0
LOG_NAME = "worker.log"
LOG_TAIL_CHARACTERS = 2000

#: glibc returns freed memory to the system at every step unless told otherwise, which halves training speed
#: on a CPU; other systems ignore these.
ALLOCATOR_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 26),
}


class LocalExecutor:
    """One worker process at a time; it sees all devices of this machine."""

    def run(self, folders: Sequence[Path]) -> Generator[Event]:
        """Serve the folders in order."""
        waiting = list(folders)
        while waiting:
            log = waiting[0] / LOG_NAME
            with _worker(waiting, log=log) as process:
                returncode = None
                while waiting and returncode is None:
                    folder = waiting.pop(0)
                    returncode = yield from _follow(process, folder)
                    message = "" if returncode is None else _tail(log)
                    yield folder, WorkerExit(returncode=returncode, message=message)


def run_job(job: EvaluateJob) -> dict[str, Any]:
    """Do a job in a worker of its own; return its result.

    Raises:
        StudyError: what the job said of the user's input.
    """
    with tempfile.TemporaryDirectory(prefix="lorastudy-job-") as name:
        folder = Path(name)
        job.write(folder)
        with _worker([folder], log=folder / LOG_NAME) as process:
            returncode = process.wait()
        if returncode != 0:
            raise StudyError(f"the worker ended with {returncode}:\n{_tail(folder / LOG_NAME)}")
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if "error" in result:
        raise StudyError(result["error"])
    return result


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The worker's environment: this one, and allocator settings where the user has none."""
    return {**ALLOCATOR_ENVIRONMENT, **environment}


def _follow(process: subprocess.Popen[bytes], folder: Path) -> Generator[Event, None, int | None]:
    """Yield the folder's records as they are written; return None when it is done, else the exit code."""
    reader = RecordReader(folder / RECORDS_NAME)
    while True:
        # Asked before reading: what a worker wrote before it ended or moved on is there to be read now.
        is_done, returncode = (folder / DONE_NAME).exists(), process.poll()
        for record in reader.read_new():
            yield folder, record
        if is_done:
            return None
        if returncode is not None:
            return returncode
        time.sleep(POLL_SECONDS)


@contextmanager
def _worker(folders: Sequence[Path], *, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process over these folders; it may leave by itself before it is ended."""
    with log.open("ab") as file:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, paths as arguments
            [sys.executable, "-m", "lorastudy.worker", *map(str, folders)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=worker_environment(os.environ),
        )
    try:
        yield process
        process.wait(timeout=FAREWELL_SECONDS)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:].strip()
