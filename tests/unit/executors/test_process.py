"""What surrounds a worker process. That it is followed and ended is the executors' contract."""

import os
from pathlib import Path

import pytest

from lorastudy.executors import process
from lorastudy.executors.process import MOST_CHARACTERS, MOST_LINES, log_tail, worker_environment


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
    given = {
        "MALLOC_TOP_PAD_": "0", "PATH": "here", "PYTORCH_ALLOC_CONF": "expandable_segments:False",
        "CUBLAS_WORKSPACE_CONFIG": ":16:8",
    }  # fmt: skip
    environment = worker_environment(given, base_models=["lab"])
    assert environment.items() >= given.items()
    assert environment["MALLOC_TRIM_THRESHOLD_"] == str(1 << 34)


def test_cuda_finds_its_allocator_and_workspace_before_torch_is_imported() -> None:
    environment = worker_environment({}, base_models=["lab"])
    assert environment["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


#: What a worker may end with, and what of its log is said.
ENDS = {
    "an error": ("import os\ndef f():\n    int('x')\nprint('before')\nf()", "ValueError: invalid literal for int() with base 10: 'x'"),
    "an error of several lines": ("raise RuntimeError('first\\n\\tsecond\\n\\nthird')", "RuntimeError: first\n\tsecond\n\nthird"),
    "an error that follows from another": (
        "try:\n    int('x')\nexcept ValueError as error:\n    raise KeyError('y') from error", "KeyError: 'y'"
    ),
    "an error while another is handled": ("try:\n    int('x')\nexcept ValueError:\n    {}['y']", "KeyError: 'y'"),
    "a deep error": (
        "import sys\nsys.setrecursionlimit(400)\ndef f(n):\n    return g(n) + 1\ndef g(n):\n    return f(n + 1)\nf(0)",
        "RecursionError: maximum recursion depth exceeded",
    ),
    "a syntax error": ("def f(:", "SyntaxError: invalid syntax"),
    "a fault of the machine": (
        "import faulthandler, numpy, os, signal\nfaulthandler.enable()\nos.kill(os.getpid(), signal.SIGSEGV)",
        "Fatal Python error: Segmentation fault",
    ),
    "a stack that was asked for": (
        (
            "import faulthandler, os, signal\nprint('at work', flush=True)\nfaulthandler.register(signal.SIGUSR1)\n"
            "os.kill(os.getpid(), signal.SIGUSR1)\nos._exit(1)"
        ),
        "at work",
    ),
    "no word": ("import os\nprint('serving pack/attempt-1', flush=True)\nos._exit(1)", "it wrote nothing"),
    "a word after those on another folder": (
        (
            "import os, traceback\ntry:\n    int('x')\nexcept ValueError:\n    traceback.print_exc()\n"
            "print('serving pack/attempt-2', flush=True)\nprint('no room', flush=True)\nos._exit(1)"
        ),
        "no room",
    ),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_the_last_words_of_a_worker_hold_no_traceback_and_name_the_log_that_does(
    tmp_path: Path, end: str
) -> None:
    program, expected = ENDS[end]
    path = tmp_path / "worker.py"
    path.write_text(program)
    with process.worker_process([tmp_path], base_models=[], worker=[str(path)]) as started:
        started.wait()
    assert started.returncode != 0
    said, _, log = log_tail(tmp_path).partition(" (its log: ")
    assert said.startswith(expected)
    assert "most recent call" not in said
    assert "File " not in said
    assert log == f"{tmp_path / 'worker.log'})"
    assert ("most recent call" in (tmp_path / "worker.log").read_text()) == (
        end not in ("no word", "a syntax error")
    )


def test_the_last_words_are_the_end_of_a_log_and_few(tmp_path: Path) -> None:
    assert log_tail(tmp_path) == "it wrote nothing"
    log = tmp_path / "worker.log"
    log.write_bytes(b"\xff" + b"x" * 2 * MOST_CHARACTERS + b" the end\n")
    said = log_tail(tmp_path)
    assert said.endswith(f"x the end (its log: {log})")
    assert len(said) <= MOST_CHARACTERS + len(f" (its log: {log})")
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    assert log_tail(tmp_path).splitlines()[0] == f"line {100 - MOST_LINES}"


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
