"""A worker process as a fork of this one, where an executor would start an interpreter: imports then cost nothing.

The executor sees no difference: the worker has its own output, environment and signals, and ends as a program does.
"""

import gc
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any
from unittest.mock import patch

from lorastudy.executors import local, process

Program = Callable[[Sequence[str]], int]
SECONDS_BETWEEN_LOOKS = 0.002
#: What Python ends with when it could not write what was left of its output.
OUTPUT_LOST = 120


@contextmanager
def workers(program: Program) -> Iterator[None]:
    """Within, `LocalExecutor` has forks run this program on the folders, and looks for their records more often."""

    def start(arguments: Sequence[str], **options: Any) -> ForkedProcess:
        folders = arguments[1 + len(process.WORKER) :]
        return ForkedProcess(program, folders, **options)

    stand_in = SimpleNamespace(**{**vars(subprocess), "Popen": start})
    with (
        patch.object(process, "subprocess", stand_in),
        patch.object(local, "POLL_SECONDS", SECONDS_BETWEEN_LOOKS),
    ):
        yield


class ForkedProcess:
    """What an executor uses of `subprocess.Popen`."""

    def __init__(
        self, program: Program, arguments: Sequence[str], *, stdin: int, stdout: IO[bytes], env: Mapping[str, str],
        cwd: Path | None, **_: object,
    ) -> None:  # fmt: skip
        sys.stdout.flush()
        sys.stderr.flush()
        self.returncode: int | None = None
        told, tells = os.pipe() if stdin == subprocess.PIPE else (os.open(os.devnull, os.O_RDONLY), None)
        self.stdin: IO[bytes] | None = None if tells is None else os.fdopen(tells, "wb")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
            self.pid = os.fork()
        if not self.pid:
            _become(told, stdout.fileno(), env=env, cwd=cwd)
            os._exit(exit_code(program, arguments))
        os.close(told)

    def poll(self) -> int | None:
        """How it ended; None while it lives."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """How it ended.

        Raises:
            TimeoutExpired: it has not by then.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing is sent to one that has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def exit_code(program: Program, arguments: Sequence[str]) -> int:
    """What an interpreter that runs the program ends with, the last flush of its output included."""
    try:
        code = program(arguments)
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    except BaseException:  # noqa: BLE001 - where an interpreter would print it and end with 1
        code = 1
        with suppress(OSError):
            traceback.print_exc()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return OUTPUT_LOST
    return code


def _become(told: int, output: int, *, env: Mapping[str, str], cwd: Path | None) -> None:
    """Be what a started process would be: its files are its input and output, signals and warnings are as by default.

    What the test's process has made is no garbage here. Looking through it copies its memory.
    """
    gc.freeze()
    os.dup2(told, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, 1024)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.resetwarnings()
    os.environ.clear()
    os.environ.update(env)
    if cwd is not None:
        os.chdir(cwd)
