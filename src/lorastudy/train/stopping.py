"""Stopping on request (SIGTERM): between two steps during training, at once during all other work.

A step or a checkpoint is completed or not begun. All other work can be repeated.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The worker was asked to stop. Not an `Exception`, so that no library catches it."""


class Stop:
    """Whether someone asked the worker to stop, and whether it may stop at any moment."""

    def __init__(self) -> None:
        self.is_requested = False
        self._is_deferred = False

    def listen(self) -> None:
        """From now on, treat SIGTERM as a request. A second one ends the process at once."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._request)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """In this context, a request takes effect at the next `check` or at the end of the block."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        self.check()

    def check(self) -> None:
        """Stop if there was a request.

        Raises:
            Stopped: there was a request.
        """
        if self.is_requested:
            raise Stopped

    def _request(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a signal handler
        self.is_requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not self._is_deferred:
            raise Stopped
