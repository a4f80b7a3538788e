"""A worker of this machine stays from run to run. What every executor keeps is in the contract."""

from contextlib import closing
from pathlib import Path

import pytest

from lorastudy.executors import LocalExecutor, WorkerExit
from lorastudy.protocol.jobs import LOG_NAME
from lorastudy.protocol.records import Pack
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings

#: Says which process served a folder; dies over a pack of that name, having served it.
WORKER = """
import os, sys
from lorastudy.protocol.jobs import folders_to_serve
from lorastudy.protocol.records import DONE_NAME, Pack

print("started", flush=True)
for folder in folders_to_serve(sys.argv[1:]):
    print("serves", folder.name, flush=True)
    (folder / "pid").write_text(str(os.getpid()))
    (folder / DONE_NAME).touch()
    if Pack.read(folder).id == "last":
        os._exit(3)
"""


@pytest.fixture
def executor(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    with closing(LocalExecutor(worker=[str(tmp_path / "worker.py")])) as made:
        yield made


def served_by(executor: LocalExecutor, folder: Path, *, what: str = "pack", base_model: str = "lab") -> str:
    """The process that served a pack of this name."""
    a_folder(folder, what=what, base_model=base_model)
    assert list(executor.run([folder])) == [(folder, WorkerExit(returncode=None))]
    return (folder / "pid").read_text()


def a_folder(folder: Path, *, what: str = "pack", base_model: str = "lab") -> Path:
    """A run folder with a pack of this name."""
    folder.mkdir()
    experiment = Experiment(
        name="e", arm="e", experiment_type="custom", seed=0, settings=Settings(base_model=base_model),
        sources=Sources(base_model="b", dataset="d"),
    )  # fmt: skip
    Pack(id=what, attempt=1, engine="auto", experiments=(experiment,)).write(folder)
    return folder


def test_a_worker_that_starts_early_serves_the_first_folder_and_logs_there(executor, tmp_path):
    executor.start_workers(["lab"])
    early = executor._process
    executor.start_workers(["lab"])
    assert executor._process is early
    assert served_by(executor, tmp_path / "1") == str(early.pid)
    assert served_by(executor, tmp_path / "2") == str(early.pid)
    assert (tmp_path / "1" / LOG_NAME).read_text() == "serves 1\nserves 2\n"
    assert not (tmp_path / "2" / LOG_NAME).exists()


def test_a_worker_that_started_early_and_serves_nothing_is_ended_at_once(executor):
    executor.start_workers(["lab"])
    early, folder = executor._process, executor._early_folder
    executor.close()
    assert early.poll() is not None
    assert not folder.exists()


def test_what_an_early_worker_dies_of_before_its_first_folder_is_said(tmp_path):
    """It takes the folder, but dies while it loads its libraries."""
    (tmp_path / "worker.py").write_text("import sys; sys.stdin.readline(); raise ImportError('no library')")
    with closing(LocalExecutor(worker=[str(tmp_path / "worker.py")])) as executor:
        executor.start_workers(["lab"])
        folder = a_folder(tmp_path / "1")
        ((_, end),) = executor.run([folder])
    assert end == WorkerExit(returncode=1, message=f"ImportError: no library (its log: {folder / LOG_NAME})")
    assert "Traceback (most recent call last)" in (folder / LOG_NAME).read_text()


def test_an_early_worker_for_another_base_model_is_replaced(executor, tmp_path):
    executor.start_workers(["lab"])
    early = executor._process
    assert served_by(executor, tmp_path / "1", base_model=str(tmp_path)) != str(early.pid)
    assert (tmp_path / "1" / LOG_NAME).read_text() == "started\nserves 1\n"


def test_one_worker_serves_run_after_run(executor, tmp_path):
    assert served_by(executor, tmp_path / "1") == served_by(executor, tmp_path / "2")


def test_a_worker_that_died_between_two_runs_is_replaced(executor, tmp_path):
    first = served_by(executor, tmp_path / "1", what="last")
    executor._process.wait()
    assert served_by(executor, tmp_path / "2") != first


def test_another_base_model_gets_a_worker_whose_surroundings_were_looked_at(executor, tmp_path):
    first = served_by(executor, tmp_path / "1")
    other = served_by(executor, tmp_path / "2", base_model=str(tmp_path))
    assert other != first
    assert served_by(executor, tmp_path / "3", base_model=str(tmp_path)) == other
