"""Commands of these tests run in the process of the test, and so do the questions of their plans."""

import contextlib
import io
import json
import warnings
from typing import Any

import pytest

from lorastudy.executors.process import JobWorker
from lorastudy.protocol.jobs import Job, PlanningJob


@pytest.fixture(autouse=True)
def plans_are_counted_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer what a plan asks of a worker in this process: a worker of its own takes five seconds to import torch.

    `tests/e2e` has plans asked of real workers.
    """
    real = JobWorker.do

    def do(worker: JobWorker, job: Job) -> dict[str, Any]:
        if not isinstance(job, PlanningJob):
            return real(worker, job)
        from lorastudy.engine.planning import answer

        folder = worker._folder / str(worker.num_jobs)
        worker.num_jobs += 1
        folder.mkdir()
        job.write(folder)
        questions = json.loads((folder / "job.json").read_text(encoding="utf-8"))["questions"]
        quiet = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(quiet),
            contextlib.redirect_stderr(quiet),
        ):
            warnings.simplefilter("ignore")
            found: dict[str, Any] = json.loads(json.dumps(answer(questions)))
        return found

    monkeypatch.setattr(JobWorker, "do", do)
