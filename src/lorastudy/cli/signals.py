"""Ctrl-C and SIGTERM while a suite runs: the first asks the workers to save and to leave, the second ends all at once."""

import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Self

from lorastudy.cli.terminal import say
from lorastudy.executors import Executor

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Departure:
    """Within the block, a signal is a request to leave. What the runner is at, it brings to its end."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def is_requested(self) -> bool:
        """Whether a signal has come."""
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """As the shell has it for a process that a signal ended."""
        return 128 + (self._signal or 0)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a signal handler
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number
        self._executor.leave()
        say(
            "\nleaving: after the step under way the pack is saved; once more, and it ends at once",
            file=sys.stderr,
        )
