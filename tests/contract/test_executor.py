"""What every executor keeps, whatever it runs on. The worker is a small program of the test, without torch."""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lorastudy.executors import Executor, LocalExecutor, MultiWorkerExecutor, WorkerExit, tail
from lorastudy.protocol.records import DONE_NAME, Generation, Pack, Record
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings

MakeExecutor = Callable[[Sequence[str]], Executor]
MakeFolder = Callable[[str], Path]

#: Does what the name of each folder's pack says, and leaves its process id behind.
WORKER = """
import os, signal, sys, time
from pathlib import Path

from lorastudy.protocol.jobs import folders_to_serve
from lorastudy.protocol.records import DONE_NAME, RECORDS_NAME, Generation, Pack
from lorastudy.protocol.records import RecordWriter


def serve(folder):
    (folder / "pid").write_text(str(os.getpid()))
    what = Pack.read(folder).id
    writer = RecordWriter(folder / RECORDS_NAME)
    for number in range(3):
        writer.write(Generation(experiment_id=str(number), prompt=what, reference="", answer=""))
    if what == "dies":
        print("out of luck", flush=True)
        os._exit(7)
    if what == "breaks":
        raise RuntimeError("no device") from ValueError("no driver")
    if what == "dies-torn":
        with (folder / RECORDS_NAME).open("a") as file:
            file.write('{"sha256": "00')
        os._exit(7)
    if what == "hangs":
        time.sleep(600)
    if what == "obeys":
        def leave(*_):
            writer.write(Generation(experiment_id="saved", prompt=what, reference="", answer=""))
            os._exit(143)
        signal.signal(signal.SIGTERM, leave)
        (folder / "listens").touch()
        time.sleep(600)
    writer.close()
    (folder / DONE_NAME).touch()


for folder in folders_to_serve(sys.argv[1:]):
    serve(folder)
"""


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One cluster of two CPUs for all tests: starting it takes seconds."""
    import ray

    from lorastudy.executors.ray import RayExecutor

    RayExecutor()  # its constructor sets what Ray reads from the environment
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(params=["local", "side by side", "ray"])
def make_executor(request: pytest.FixtureRequest) -> MakeExecutor:
    if request.param == "local":
        return lambda worker: LocalExecutor(worker=worker)
    if request.param == "side by side":
        return lambda worker: MultiWorkerExecutor(environments=[{"LANE": "0"}, {"LANE": "1"}], worker=worker)
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed (an optional extra)")
    request.getfixturevalue("ray_cluster")
    from lorastudy.executors.ray import RayExecutor

    return lambda worker: RayExecutor(num_gpus=0, worker=worker)


@pytest.fixture
def executor(make_executor: MakeExecutor, tmp_path: Path) -> Iterator[Executor]:
    program = tmp_path / "worker.py"
    program.write_text(WORKER)
    with closing(make_executor([str(program)])) as made:
        yield made


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """A run folder whose pack's name says what the worker does with it."""
    experiment = Experiment(
        name="e", arm="e", experiment_type="custom", seed=0, settings=Settings(),
        sources=Sources(base_model="lab", dataset="lab"),
    )  # fmt: skip
    numbers = iter(range(100))

    def make(what: str) -> Path:
        folder = tmp_path / f"run-{next(numbers)}"
        folder.mkdir()
        Pack(id=what, attempt=1, engine="auto", experiments=(experiment,)).write(folder)
        return folder

    return make


def by_folder(events: Any) -> dict[Path, list[Record | WorkerExit]]:
    found: dict[Path, list[Record | WorkerExit]] = {}
    for folder, event in events:
        found.setdefault(folder, []).append(event)
    return found


def numbers_of(events: list[Record | WorkerExit]) -> list[str]:
    return [event.experiment_id for event in events if isinstance(event, Generation)]


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        # A process that has ended but was not waited for (its parent is Ray's) still has a number.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.05)


def test_records_come_in_order_and_end_with_the_exit(executor: Executor, make_folder: MakeFolder) -> None:
    folders = [make_folder("works"), make_folder("works"), make_folder("works")]
    found = by_folder(executor.run(folders))
    assert set(found) == set(folders)
    for events in found.values():
        assert numbers_of(events) == ["0", "1", "2"]
        assert events[3:] == [WorkerExit(returncode=None)]


def test_workers_that_start_early_serve_as_others_do(executor: Executor, make_folder: MakeFolder) -> None:
    executor.start_workers(["lab"])
    folders = [make_folder("works"), make_folder("breaks"), make_folder("works")]
    found = by_folder(executor.run(folders))
    assert [numbers_of(found[folder]) for folder in folders] == [["0", "1", "2"]] * 3
    assert [getattr(found[folder][-1], "returncode", 0) for folder in folders] == [None, 1, None]


def test_one_run_after_another(executor: Executor, make_folder: MakeFolder) -> None:
    # A search for learning rates and a race send folders round after round.
    pids = set()
    for _ in range(3):
        folders = [make_folder("works"), make_folder("works")]
        found = by_folder(executor.run(folders))
        assert [numbers_of(found[folder]) for folder in folders] == [["0", "1", "2"]] * 2
        pids |= {int((folder / "pid").read_text()) for folder in folders}
    executor.close()
    for pid in pids:
        wait_until(partial(lambda pid: not is_alive(pid), pid))
    last = make_folder("works")
    assert numbers_of(by_folder(executor.run([last]))[last]) == ["0", "1", "2"]


def test_after_a_run_that_was_broken_off_on_request_comes_no_other(
    executor: Executor, make_folder: MakeFolder
) -> None:
    with closing(executor.run([make_folder("hangs"), make_folder("hangs")])) as events:
        next(events)
        executor.leave()
    assert not [event for _, event in executor.run([make_folder("works")]) if isinstance(event, Generation)]


def test_after_a_run_that_was_broken_off_comes_another(executor: Executor, make_folder: MakeFolder) -> None:
    with closing(executor.run([make_folder("hangs"), make_folder("hangs")])) as events:
        next(events)
    folders = [make_folder("works"), make_folder("works")]
    found = by_folder(executor.run(folders))
    assert [numbers_of(found[folder]) for folder in folders] == [["0", "1", "2"]] * 2


def test_a_worker_that_dies_over_one_folder_does_not_lose_the_others(
    executor: Executor, make_folder: MakeFolder
) -> None:
    folders = [make_folder("works"), make_folder("dies"), make_folder("works"), make_folder("dies-torn")]
    found = by_folder(executor.run(folders))
    assert [numbers_of(found[folder]) for folder in folders] == [["0", "1", "2"]] * 4
    exits = [found[folder][-1] for folder in folders]
    assert all(isinstance(end, WorkerExit) for end in exits)
    assert [getattr(end, "returncode", 0) for end in exits] == [None, 7, None, 7]
    assert "out of luck" in getattr(exits[1], "message", "")


def test_what_a_worker_dies_of_is_said_without_a_traceback_which_stays_in_the_log_that_is_named(
    executor: Executor, make_folder: MakeFolder
) -> None:
    folder = make_folder("breaks")
    end = by_folder(executor.run([folder]))[folder][-1]
    assert isinstance(end, WorkerExit)
    assert end.message == f"RuntimeError: no device (its log: {folder / 'worker.log'})"
    assert "Traceback (most recent call last):" in (folder / "worker.log").read_text()


def test_closing_ends_the_processes_and_what_waits_never_starts(
    executor: Executor, make_folder: MakeFolder
) -> None:
    folders = [make_folder("hangs") for _ in range(4)]  # the cluster has room for two
    with closing(executor.run(folders)) as events:
        first, _ = next(events)
        begun = [folder for folder in folders if (folder / "pid").exists()]
    assert first in begun
    begun = [folder for folder in folders if (folder / "pid").exists()]
    assert len(begun) < len(folders)
    for folder in begun:
        wait_until(partial(lambda pid: not is_alive(pid), int((folder / "pid").read_text())))
        assert not (folder / DONE_NAME).exists()


def test_asked_to_leave_a_worker_saves_first_and_no_other_starts(
    executor: Executor, make_folder: MakeFolder
) -> None:
    folders = [make_folder("obeys") for _ in range(4)]  # the cluster has room for two
    found: dict[Path, list[Record | WorkerExit]] = {}
    for folder, event in executor.run(folders):
        found.setdefault(folder, []).append(event)
        if len(found[folder]) == 3 and folder == folders[0]:
            wait_until((folder / "listens").exists)
            executor.leave()
    begun = [folder for folder in folders if (folder / "listens").exists()]
    assert folders[0] in begun
    assert len(begun) < len(folders)
    assert numbers_of(found[folders[0]]) == ["0", "1", "2", "saved"]
    end = found[folders[0]][-1]
    assert isinstance(end, WorkerExit)
    assert end.was_killed


@pytest.mark.parametrize(
    "make_executor",
    [
        "local",
        pytest.param("side by side", marks=pytest.mark.slow),
        pytest.param("ray", marks=pytest.mark.slow),
    ],
    indirect=True,
)
def test_a_worker_that_hangs_is_ended_and_the_next_folder_served(
    executor: Executor, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "QUIET_SECONDS", 5.0)
    folders = [make_folder("hangs"), make_folder("works")]
    found = by_folder(executor.run(folders))
    end = found[folders[0]][-1]
    assert isinstance(end, WorkerExit)
    assert end.was_killed
    assert end.message.startswith("hung: no record for 5 s")
    assert numbers_of(found[folders[0]]) == ["0", "1", "2"]
    assert found[folders[1]][-1] == WorkerExit(returncode=None)
    pid = int((folders[0] / "pid").read_text())
    wait_until(lambda: not is_alive(pid))


def test_a_worker_that_cannot_even_start_is_an_exit_of_every_folder(
    make_executor: MakeExecutor, make_folder: MakeFolder, tmp_path: Path
) -> None:
    folders = [make_folder("works"), make_folder("works")]
    with closing(make_executor([str(tmp_path / "missing.py")])) as executor:
        found = by_folder(executor.run(folders))
    for folder in folders:
        (end,) = found[folder]
        assert isinstance(end, WorkerExit)
        assert end.returncode == 2  # of the interpreter
        assert "missing.py" in end.message


def test_nothing_to_serve_is_nothing(executor: Executor) -> None:
    assert list(executor.run([])) == []
