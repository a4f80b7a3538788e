"""Commands, and what a plan asks of a worker, in the process of a test, and workers that are forks of it.

Another process takes five seconds of the processor to import torch and transformers. `tests/e2e/test_workflow.py` and
`tests/e2e/test_documents_run.py` have everything in processes of its own, as users do.
"""

import contextlib
import io
import json
import os
import subprocess
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import forks
from lorastudy.cli.main import main
from lorastudy.executors import process
from lorastudy.executors.process import JobWorker
from lorastudy.protocol.files import exit_code_of
from lorastudy.protocol.jobs import Job, PlanningJob

_real_do = JobWorker.do


@contextlib.contextmanager
def plans_answered_here() -> Iterator[None]:
    """Within, this process answers what a plan asks of a worker."""
    with patch.object(JobWorker, "do", _do):
        yield


def _do(worker: JobWorker, job: Job) -> dict[str, Any]:
    if not isinstance(job, PlanningJob):
        return _real_do(worker, job)
    from lorastudy.engine.planning import answer

    folder = worker._folder / str(worker.num_jobs)
    worker.num_jobs += 1
    folder.mkdir()
    job.write(folder)
    questions = json.loads((folder / "job.json").read_text(encoding="utf-8"))["questions"]
    quiet = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        warnings.simplefilter("ignore")
        found: dict[str, Any] = json.loads(json.dumps(answer(questions)))
    return found


@contextlib.contextmanager
def workers_forked_here() -> Iterator[None]:
    """Within, workers are forks of this process, which has torch and transformers by then."""
    from lorastudy.train import worker  # before the fork

    with forks.workers(partial(exit_code_of, partial(_with_own_threads, worker.main))):
        yield


def _with_own_threads(main: forks.Program, arguments: Sequence[str]) -> int:
    """Serve with as many threads as the worker's environment says, which torch reads only at the start of a program."""
    import torch

    if process.THREADS_VARIABLE in os.environ:
        torch.set_num_threads(int(os.environ[process.THREADS_VARIABLE]))
    return main(arguments)


def run_here(
    arguments: Sequence[str], *, cwd: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """What `lorastudy` with these arguments prints and its exit code. Its workers are forks of this process."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        contextlib.chdir(cwd),
        patch.dict(os.environ, environment),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        plans_answered_here(),
        workers_forked_here(),
    ):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
