"""A worker of this machine stays from run to run. What every executor keeps is in the contract."""

from contextlib import closing
from pathlib import Path

import pytest

from lorastudy.executors import LocalExecutor, WorkerExit
from lorastudy.protocol.records import Pack
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings

#: Says which process served a folder; dies over a pack of that name, having served it.
WORKER = """
import os, sys
from lorastudy.protocol.jobs import folders_to_serve
from lorastudy.protocol.records import DONE_NAME, Pack

for folder in folders_to_serve(sys.argv[1:]):
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
    folder.mkdir()
    experiment = Experiment(
        name="e", arm="e", experiment_type="custom", seed=0, settings=Settings(base_model=base_model),
        sources=Sources(base_model="b", dataset="d"),
    )  # fmt: skip
    Pack(id=what, attempt=1, engine="auto", experiments=(experiment,)).write(folder)
    assert list(executor.run([folder])) == [(folder, WorkerExit(returncode=None))]
    return (folder / "pid").read_text()


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
