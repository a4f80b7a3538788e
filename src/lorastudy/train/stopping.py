"""Leaving on request (SIGTERM): between two steps while the pack trains, at once while it does anything else.

A step is whole or not there, and so is a checkpoint; all else can be done again.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The worker was asked to leave. Not an `Exception`: no library is to catch it on the way."""


class Stop:
    """Whether the worker has been asked to leave, and whether it may do so at any moment."""

    def __init__(self) -> None:
        self.is_requested = False
        self._is_deferred = False

    def listen(self) -> None:
        """From now on SIGTERM is a request; another one ends the process, as does the runner's SIGKILL."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._request)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a request waits for `check`."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        self.check()

    def check(self) -> None:
        """Leave now if asked to.

        Raises:
            Stopped: it was.
        """
        if self.is_requested:
            raise Stopped

    def _request(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a signal handler
        self.is_requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not self._is_deferred:
            raise Stopped
