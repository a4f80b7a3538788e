"""One worker for job after job. The worker is a small program of the test, without torch."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from lorastudy.errors import DataError, StudyError
from lorastudy.executors.process import JobWorker

#: Does what each job says, and tells its process id.
WORKER = """
import json, os, sys
from pathlib import Path

assert sys.argv[1:] == ["-"]
for line in sys.stdin:
    folder = Path(json.loads(line))
    what = (folder / "job.json").read_text()
    if what == "dies":
        print("out of luck", flush=True)
        os._exit(7)
    result = {
        "refuses": {"error": "no such model"}, "refuses data": {"error": "no such rows", "is_of_data": True},
    }.get(what, {"pid": os.getpid(), "did": what})
    (folder / "result.new").write_text(json.dumps(result))
    (folder / "result.new").rename(folder / "result.json")
"""


@dataclass
class Job:
    what: str
    base_model: str = "lab"

    def write(self, folder: Path) -> None:
        (folder / "job.json").write_text(self.what)


@pytest.fixture
def program(tmp_path: Path) -> str:
    (tmp_path / "worker.py").write_text(WORKER)
    return str(tmp_path / "worker.py")


def test_one_process_does_all_jobs_and_is_gone_with_the_block(program: str) -> None:
    with JobWorker(worker=[program]) as worker:
        first, second = worker.do(Job("one")), worker.do(Job("two"))
        assert (first["did"], second["did"]) == ("one", "two")
        assert first["pid"] == second["pid"]
        assert worker.num_jobs == 2
    with pytest.raises(ProcessLookupError):
        os.kill(first["pid"], 0)


def test_without_a_job_no_process_is_started(tmp_path: Path) -> None:
    with JobWorker(worker=[str(tmp_path / "missing.py")]) as worker:
        assert worker.num_jobs == 0


def test_what_a_job_says_of_the_users_input_is_the_users_error_and_the_next_job_is_done(program: str) -> None:
    with JobWorker(worker=[program]) as worker:
        with pytest.raises(StudyError, match=r"^no such model$") as refused:
            worker.do(Job("refuses"))
        assert not isinstance(refused.value, DataError)
        with pytest.raises(DataError, match=r"^no such rows$"):
            worker.do(Job("refuses data"))
        assert worker.do(Job("one"))["did"] == "one"


def test_a_worker_that_dies_says_with_what_and_so_does_every_later_job(program: str) -> None:
    with JobWorker(worker=[program]) as worker:
        for _ in range(2):
            with pytest.raises(
                StudyError, match=r"^the worker ended with 7: out of luck \(its log: .*\)$"
            ) as died:
                worker.do(Job("dies"))
            log = Path(str(died.value).rpartition("its log: ")[2].removesuffix(")"))
            assert "out of luck" in log.read_text()
            log.unlink()
