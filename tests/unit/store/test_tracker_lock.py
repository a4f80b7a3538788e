"""One writer: who comes second is told who was first, and a lock that its holder left behind is taken over."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lorastudy.errors import StoreError
from lorastudy.store import ExperimentTracker
from lorastudy.store.lock import Holder
from lorastudy.suite.experiment import Experiment

WRITER = """
import sys
from lorastudy.store import ExperimentTracker
with ExperimentTracker(sys.argv[1], writable=True):
    print("open", flush=True)
    sys.stdin.read()
"""


@contextmanager
def writer_in_another_process(database: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(database)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process:
        assert process.stdout.readline() == "open\n"
        yield process
        process.stdin.close()


def lock_of(database: Path) -> Path:
    return database.with_name(f"{database.name}.lock")


def test_a_second_writer_is_refused_at_once_and_told_who_is_the_first(database: Path) -> None:
    with writer_in_another_process(database) as first:
        with pytest.raises(StoreError) as refused:
            ExperimentTracker(database, writable=True)
        with ExperimentTracker(database) as reader:
            assert reader.get_suites() == []
    assert f"is being written by process {first.pid} on {socket.gethostname()}, since 20" in str(
        refused.value
    )
    assert "wait for that one or stop it" in str(refused.value)
    ExperimentTracker(database, writable=True).close()
    assert not lock_of(database).exists()


def test_a_writer_in_the_same_process_is_refused_too(database: Path) -> None:
    with ExperimentTracker(database, writable=True):
        with pytest.raises(StoreError, match=f"process {os.getpid()} on"):
            ExperimentTracker(database, writable=True)
        assert lock_of(database).exists()  # the refused one has not taken the first one's file away


def test_the_lock_of_a_killed_writer_is_taken_over_and_it_is_named(
    database: Path, make_experiment: Callable[..., Experiment]
) -> None:
    with writer_in_another_process(database) as first:
        first.send_signal(signal.SIGKILL)
    assert lock_of(database).exists()
    with ExperimentTracker(database, writable=True) as second:
        assert second.left_behind is not None
        assert second.left_behind.pid == first.pid
        second.register("ranks", [make_experiment(8)])
    with ExperimentTracker(database, writable=True) as third:
        assert third.left_behind is None


def test_a_number_that_another_process_has_by_now_does_not_keep_the_lock(database: Path) -> None:
    """The system says whether a lock is held; a process number that is in use says nothing."""
    ExperimentTracker(database, writable=True).close()
    holder = {"pid": os.getppid(), "host": socket.gethostname(), "since": "2026-01-01"}
    lock_of(database).write_text(json.dumps(holder))
    with ExperimentTracker(database, writable=True) as tracker:
        assert tracker.left_behind == Holder(**holder)


def test_a_lock_that_another_machine_left_is_refused_with_what_to_remove(database: Path) -> None:
    ExperimentTracker(database, writable=True).close()
    lock_of(database).write_text(
        json.dumps({"pid": 7, "host": "rented-3", "since": "2026-01-01", "boot_id": "another"})
    )
    with pytest.raises(
        StoreError, match=rf"process 7 on rented-3, since 2026-01-01.*remove {lock_of(database)}"
    ):
        ExperimentTracker(database, writable=True)
    lock_of(database).unlink()
    ExperimentTracker(database, writable=True).close()


def test_a_container_of_the_same_machine_has_another_name_and_the_same_kernel(database: Path) -> None:
    here = Holder.here()
    ExperimentTracker(database, writable=True).close()
    holder = {"pid": 7, "host": "4f1b", "since": "2026-01-01", "boot_id": here.boot_id}
    lock_of(database).write_text(json.dumps(holder))
    if here.boot_id is None:
        pytest.skip("this system does not name its kernel's start")
    with ExperimentTracker(database, writable=True) as tracker:
        assert tracker.left_behind == Holder(**holder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_torn_lock_file_is_taken_over_without_a_name(database: Path, content: str) -> None:
    ExperimentTracker(database, writable=True).close()
    lock_of(database).write_text(content)
    with ExperimentTracker(database, writable=True) as tracker:
        assert tracker.left_behind is None


def test_a_store_that_is_removed_while_it_is_written_says_so(
    database: Path, make_experiment: Callable[..., Experiment]
) -> None:
    with ExperimentTracker(database, writable=True) as tracker:
        tracker.register("ranks", [make_experiment(8)])
        database.rename(database.with_name("moved.db"))
        with pytest.raises(StoreError, match=r"was removed or replaced while.*lorastudy db rebuild"):
            tracker.register("ranks", [make_experiment(16)])
        database.write_bytes(b"")
        with pytest.raises(StoreError, match="was removed or replaced"):
            tracker.register("ranks", [make_experiment(16)])


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where the folder should be")
    with pytest.raises(
        StoreError, match=r"results: the results store cannot be made here: (File exists|Not a dir)"
    ):
        ExperimentTracker(tmp_path / "results" / "experiments.db", writable=True)
