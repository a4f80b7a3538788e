"""How long a worker may be silent before it counts as hung.

While it trains, it says something after every step, so its own median step is the measure; with a generous floor, for
a checkpoint of many gigabytes, or a machine that is shared, is no reason to end it. Before the first step and after
the last it loads, profiles and evaluates, and only a long silence means anything. Time is monotonic: a wall clock that
is set makes nobody late.
"""

import statistics
import time
from collections.abc import Callable

from lorastudy.protocol.records import PackStep, Record

#: A worker in training may take so many times its median step, but at least so long.
NUM_MEDIANS = 20.0
LEAST_SECONDS = 300.0
#: A worker that does anything else.
QUIET_SECONDS = 3600.0

#: What the message of a worker that was ended for its silence begins with.
HUNG = "hung"


class Patience:
    """The silence of one worker over one folder."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard = clock()
        self._seconds: list[float] = []
        self._is_training = False

    def hear(self, record: Record) -> None:
        """Take note of a record."""
        self._heard = self._clock()
        self._is_training = isinstance(record, PackStep) and record.step < record.num_steps
        if isinstance(record, PackStep):
            self._seconds.append(record.seconds)

    @property
    def limit(self) -> float:
        """Seconds that it may be silent now."""
        if not self._is_training:
            return QUIET_SECONDS
        return max(LEAST_SECONDS, NUM_MEDIANS * statistics.median(self._seconds))

    def complaint(self) -> str | None:
        """What is wrong if it has been silent for too long; None while it may be."""
        silent = self._clock() - self._heard
        if silent <= self.limit:
            return None
        what = "no step" if self._is_training else "no word"
        median = f", its median step took {statistics.median(self._seconds):.3g} s" if self._seconds else ""
        return f"{HUNG}: {what} for {silent:.0f} s{median}"
