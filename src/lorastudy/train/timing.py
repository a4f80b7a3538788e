"""How fast a pack goes, over all attempts at it, and how rarely it may stop to be saved."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lorastudy.protocol.records import CheckpointProfile, PackStep

Clock = Callable[[], float]
"""Seconds that never jump, whatever becomes of the wall clock."""

#: Of the time spent in training, at most so much goes into checkpoints.
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
    """How fast training goes; what else is done between two steps does not count.

    Beside the steps, what it took to begin and to score the held-out rows on the way, in all attempts that this one goes
    on from.
    """

    seconds: list[float] = field(default_factory=list)
    load_seconds: float = 0.0
    rung_seconds: float = 0.0
    num_tokens: int = 0
    watch: Stopwatch = field(default_factory=Stopwatch)

    def step(self, num_tokens: int) -> float:
        """Take note of a step that just ended; return its seconds."""
        self.seconds.append(self.watch.lap())
        self.num_tokens += num_tokens
        return self.seconds[-1]

    def carry(self, step: PackStep) -> None:
        """Take note of a step of an earlier attempt."""
        self.seconds.append(step.seconds)
        self.num_tokens += step.num_tokens

    @property
    def train_seconds(self) -> float:
        """Of all steps together."""
        return sum(self.seconds)

    @property
    def median_step_seconds(self) -> float | None:
        """None before the first step."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def tokens_per_second(self) -> float | None:
        """Real tokens of all arms together."""
        return self.num_tokens / self.train_seconds if self.seconds else None


@dataclass(kw_only=True)
class CheckpointSchedule:
    """When the next checkpoint is due: after so many steps or minutes, but never so often that it costs too much.

    The share is that of all training so far, with the next checkpoint taken to cost what the last one did. So a
    slow disk or a large state makes the interval longer by itself.
    """

    every_steps: int | None
    every_seconds: float | None
    num_checkpoints: int = 0
    last_bytes: int = 0
    seconds: float = 0.0
    last_seconds: float = 0.0
    _num_steps_at_last: int = 0
    _train_seconds_at_last: float = 0.0

    def is_due(self, pace: TrainingTimes) -> bool:
        """Whether to write one after the step that just ended."""
        num_steps = len(pace.seconds) - self._num_steps_at_last
        since = pace.train_seconds - self._train_seconds_at_last
        is_wanted = (self.every_steps is not None and num_steps >= self.every_steps) or (
            self.every_seconds is not None and since >= self.every_seconds
        )
        return is_wanted and self.seconds + self.last_seconds <= MAX_CHECKPOINT_SHARE * pace.train_seconds

    def took(self, seconds: float, *, num_bytes: int | None, pace: TrainingTimes) -> None:
        """Take note of a checkpoint that was written, or of the vain attempt (no bytes)."""
        self.seconds += seconds
        self.last_seconds = seconds
        self.begin(pace)
        if num_bytes is not None:
            self.num_checkpoints += 1
            self.last_bytes = num_bytes

    def begin(self, pace: TrainingTimes) -> None:
        """Count steps and time from here."""
        self._num_steps_at_last, self._train_seconds_at_last = len(pace.seconds), pace.train_seconds

    def profile(self) -> CheckpointProfile:
        """What they cost."""
        return CheckpointProfile(
            num_checkpoints=self.num_checkpoints, last_bytes=self.last_bytes, seconds=self.seconds
        )
