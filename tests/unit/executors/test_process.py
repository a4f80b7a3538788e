"""What surrounds a worker process. That it is followed and ended is the executors' contract."""

import os
from pathlib import Path

import pytest

from lorastudy.executors import process
from lorastudy.executors.process import LOG_TAIL_CHARACTERS, log_tail, worker_environment


@pytest.mark.parametrize("answers", [True, False])
def test_a_worker_works_offline_where_the_hub_is_needed_and_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    asked: list[None] = []
    monkeypatch.setattr(process, "is_hub_reachable", lambda: asked.append(None) or answers)
    assert "HF_HUB_OFFLINE" not in worker_environment({}, base_models=["lab", "lab"])
    assert not asked, "nobody is contacted for nothing"
    environment = worker_environment({}, base_models=["lab", "org/name"])
    assert environment.get("HF_HUB_OFFLINE") == (None if answers else "1")


def test_what_the_user_has_set_stays() -> None:
    environment = worker_environment({"MALLOC_TOP_PAD_": "0", "PATH": "here"}, base_models=["lab"])
    assert environment["MALLOC_TOP_PAD_"] == "0"
    assert environment["PATH"] == "here"
    assert environment["MALLOC_TRIM_THRESHOLD_"] == str(1 << 34)


def test_the_tail_of_a_log_is_its_end(tmp_path: Path) -> None:
    assert log_tail(tmp_path) == ""
    (tmp_path / "worker.log").write_bytes(b"\xff" + b"x" * LOG_TAIL_CHARACTERS + b" the end\n")
    tail = log_tail(tmp_path)
    assert tail.endswith("the end")
    assert len(tail) <= LOG_TAIL_CHARACTERS


def test_a_process_that_does_not_obey_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FAREWELL_SECONDS", 0.2)
    program = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('deaf', flush=True); time.sleep(60)"
    )
    with process.worker_process([tmp_path], base_models=[], worker=["-c", program]) as started:
        while "deaf" not in log_tail(tmp_path):
            os.sched_yield()
    assert started.returncode == -9
