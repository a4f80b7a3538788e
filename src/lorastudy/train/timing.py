"""Times of a pack over all its attempts, and the schedule of its checkpoints."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lorastudy.protocol.records import CheckpointProfile, PackStep

Clock = Callable[[], float]
"""A monotonic clock, in seconds."""

#: The largest share of training time that may go into checkpoints.
MAX_CHECKPOINT_SHARE = 0.03


@dataclass(kw_only=True)
class Stopwatch:
    """Seconds between laps."""

    clock: Clock = time.perf_counter
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._last = self.clock()

    def lap(self) -> float:
        """Seconds since the last lap, or since the start."""
        now = self.clock()
        seconds, self._last = now - self._last, now
        return seconds


@dataclass(kw_only=True)
class TrainingTimes:
    """Seconds of each training step, of loading and of scoring at rungs, including earlier attempts that it resumes.

    Other work between two steps does not count as training.
    """

    seconds: list[float] = field(default_factory=list)
    load_seconds: float = 0.0
    rung_seconds: float = 0.0
    num_tokens: int = 0
    watch: Stopwatch = field(default_factory=Stopwatch)

    def step(self, num_tokens: int) -> float:
        """Record a step that just ended; return its seconds."""
        self.seconds.append(self.watch.lap())
        self.num_tokens += num_tokens
        return self.seconds[-1]

    def carry(self, step: PackStep) -> None:
        """Record a step of an earlier attempt."""
        self.seconds.append(step.seconds)
        self.num_tokens += step.num_tokens

    @property
    def train_seconds(self) -> float:
        """Seconds of all steps together."""
        return sum(self.seconds)

    @property
    def median_step_seconds(self) -> float | None:
        """Median seconds of a step; None before the first step."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second, summed over the arms. There is no padding."""
        return self.num_tokens / self.train_seconds if self.seconds else None


@dataclass(kw_only=True)
class CheckpointSchedule:
    """When the next checkpoint is due: after a number of steps or seconds, at no more than `MAX_CHECKPOINT_SHARE`.

    The share is checkpoint time divided by all training time so far. It assumes that the next checkpoint takes as long
    as the last one. So a slow disk or a large state lengthens the interval.
    """

    every_steps: int | None
    every_seconds: float | None
    num_checkpoints: int = 0
    last_bytes: int = 0
    seconds: float = 0.0
    last_seconds: float = 0.0
    _num_steps_at_last: int = 0
    _train_seconds_at_last: float = 0.0

    def is_due(self, times: TrainingTimes) -> bool:
        """Whether to write a checkpoint after the step that just ended."""
        num_steps = len(times.seconds) - self._num_steps_at_last
        since = times.train_seconds - self._train_seconds_at_last
        is_wanted = (self.every_steps is not None and num_steps >= self.every_steps) or (
            self.every_seconds is not None and since >= self.every_seconds
        )
        return is_wanted and self.seconds + self.last_seconds <= MAX_CHECKPOINT_SHARE * times.train_seconds

    def took(self, seconds: float, *, num_bytes: int | None, times: TrainingTimes) -> None:
        """Record the cost of a checkpoint. `num_bytes` is None if it could not be written."""
        self.seconds += seconds
        self.last_seconds = seconds
        self.begin(times)
        if num_bytes is not None:
            self.num_checkpoints += 1
            self.last_bytes = num_bytes

    def begin(self, times: TrainingTimes) -> None:
        """Count steps and time from here."""
        self._num_steps_at_last, self._train_seconds_at_last = len(times.seconds), times.train_seconds

    def profile(self) -> CheckpointProfile:
        """The cost of all checkpoints, as a record."""
        return CheckpointProfile(
            num_checkpoints=self.num_checkpoints, last_bytes=self.last_bytes, seconds=self.seconds
        )
