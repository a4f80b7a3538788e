"""Worker processes: start them, send them folders and end them. `JobWorker` runs jobs in one."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lorastudy.errors import DataError, StudyError, without_tracebacks
from lorastudy.executors.tail import POLL_SECONDS
from lorastudy.protocol.jobs import FROM_INPUT, LOG_NAME, RESULT_NAME, SERVING, Job
from lorastudy.protocol.parent_watch import tied_to_this_process
from lorastudy.protocol.records import Pack
from lorastudy.suite.base_model import OFFLINE_VARIABLE, is_hub_model, is_hub_reachable

#: The arguments of the Python interpreter; the folders follow.
WORKER = ("-m", "lorastudy.train.worker")

#: The most lines of a log that a message quotes.
MOST_LINES = 10

MOST_CHARACTERS = 2000

#: The time in which a worker must exit by itself when it is done, or after SIGTERM.
FAREWELL_SECONDS = 10.0

#: The time in which a worker that hangs must write its traceback.
TRACEBACK_SECONDS = 0.5

#: By default glibc returns freed memory to the system at every step, which halves training speed on a CPU. Other
#: systems ignore these variables.
ALLOCATOR_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 26),
}

#: Variables that torch reads when it is imported. Without a GPU they have no effect.
#:
#: - CUDA's allocator grows its segments instead of keeping blocks of many sizes. The lengths of rows differ from step to
#:   step, and free blocks that fit none of them would count as used.
#: - cuBLAS has one workspace of 32 MiB. With another one the same product may give other bits, and torch refuses products
#:   where results must be deterministic (`engine/numerics.py`).
CUDA_ENVIRONMENT = {
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}

#: A waiting thread sleeps instead of spinning. If other work needs the cores too, spinning threads block the very
#: thread that they wait for: on two busy cores a step took several times as long (docs/log.md).
THREADS_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}

THREADS_VARIABLE = "OMP_NUM_THREADS"


def threads_in(environment: Mapping[str, str]) -> int | None:
    """The number of CPU threads that these environment variables give a worker; None if they give none."""
    return int(environment[THREADS_VARIABLE]) if THREADS_VARIABLE in environment else None


@contextmanager
def worker_process(
    folders: Sequence[Path],
    *,
    base_models: Iterable[str],
    worker: Sequence[str] = WORKER,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    takes_more: bool = False,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that serves these folders and writes its log into the first.

    `environment` is added to this process's environment variables. With `takes_more` it
    starts without folders: send them with `send_folders` until its standard input is closed.

    At the end of the block the process gets time to exit by itself. An error, or closing a generator, ends it at once.
    In both cases the process no longer exists afterwards.
    """
    with (folders[0] / LOG_NAME).open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, paths as arguments
            [sys.executable, *worker, *([FROM_INPUT] if takes_more else map(str, folders))],
            stdin=subprocess.PIPE if takes_more else subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=tied_to_this_process(
                worker_environment({**os.environ, **(environment or {})}, base_models=base_models)
            ),
            cwd=cwd,
        )
    try:
        yield process
        _close_input(process)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=FAREWELL_SECONDS)
    finally:
        _end(process)
        _close_input(process)


def send_folders(process: subprocess.Popen[bytes], folders: Iterable[Path]) -> None:
    """Send folders to a process started with `takes_more`. A dead process is no error here; see its exit code."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        for folder in folders:
            process.stdin.write(f"{json.dumps(str(folder))}\n".encode())
        process.stdin.flush()


def worker_environment(environment: Mapping[str, str], *, base_models: Iterable[str]) -> dict[str, str]:
    """The worker's environment variables: the given ones, plus defaults for allocators, CUDA and threads.

    If a base model is on the hub and the hub does not answer, the worker uses only its cache.
    """
    cut_off = any(is_hub_model(base_model) for base_model in base_models) and not is_hub_reachable()
    offline = {OFFLINE_VARIABLE: "1"} if cut_off else {}
    return {**ALLOCATOR_ENVIRONMENT, **CUDA_ENVIRONMENT, **THREADS_ENVIRONMENT, **environment, **offline}


def base_model_of(folder: Path) -> str:
    """The base model of the folder's pack, which all its experiments share."""
    return Pack.read(folder).experiments[0].settings.base_model


def log_tail(folder: Path, *, kept_as: Path | None = None) -> str:
    """The end of a worker's log, without tracebacks, and the path of the log. The log is in the worker's first folder.

    `kept_as` replaces that path in the text, if the log was copied.
    """
    log = folder / LOG_NAME
    if not log.exists():
        return "it wrote nothing"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    begun = max((number for number, line in enumerate(lines) if line.startswith(SERVING)), default=-1)
    last = without_tracebacks("\n".join(lines[begun + 1 :])).splitlines()[-MOST_LINES:]
    text = "\n".join(last)[-MOST_CHARACTERS:].strip() or "it wrote nothing"
    return f"{text} (its log: {kept_as or log})"


def end_hung(process: subprocess.Popen[bytes]) -> None:
    """End a worker that hangs, after it has logged its traceback."""
    if hasattr(signal, "SIGUSR1"):
        process.send_signal(signal.SIGUSR1)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=TRACEBACK_SECONDS)
    process.kill()


def _close_input(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with suppress(BrokenPipeError):  # unsent folders do not matter any more
            process.stdin.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout=FAREWELL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class JobWorker:
    """A worker process for one job after another. It starts with the first job and ends with the block.

    It imports torch only once. A new process for every job would cost seconds each time.
    """

    def __init__(self, *, worker: Sequence[str] = WORKER) -> None:
        """`worker` are the arguments of the Python interpreter."""
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
            self._process.kill()  # it has no state to save, and tearing down torch takes a while
        self._open.__exit__(kind, error, traceback)

    def do(self, job: Job) -> dict[str, Any]:
        """Do a job; return its result.

        Raises:
            DataError: the job found an error in the user's data.
            StudyError: it found an error in other input, or its worker died.
        """
        folder = self._folder / str(self.num_jobs)
        self.num_jobs += 1
        folder.mkdir()
        job.write(folder)
        process = self._started(job)
        send_folders(process, [folder])
        while not (folder / RESULT_NAME).exists():
            returncode = process.poll()
            if returncode is not None:
                raise StudyError(f"the worker ended with {returncode}: {_kept_log_tail(self._folder)}")
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


def _kept_log_tail(folder: Path) -> str:
    """The end of the worker's log. The log is copied, since its folder is deleted."""
    with tempfile.NamedTemporaryFile(prefix="lorastudy-worker-", suffix=".log", delete=False) as kept:
        kept.write((folder / LOG_NAME).read_bytes())
    return log_tail(folder, kept_as=Path(kept.name))


def run_job(job: Job) -> dict[str, Any]:
    """The result of a job, done in a new worker.

    Raises:
        StudyError: the job found an error in the user's input, or its worker died.
    """
    with JobWorker() as worker:
        return worker.do(job)
