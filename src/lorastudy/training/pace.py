"""How fast a pack goes."""

import statistics
import time
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Stopwatch:
    """Seconds between laps."""

    _last: float = field(default_factory=time.perf_counter)

    def lap(self) -> float:
        """Seconds since the last lap, or since the start."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


@dataclass(kw_only=True)
class Pace:
    """How fast training goes."""

    seconds: list[float] = field(default_factory=list)
    num_tokens: int = 0
    _clock: Stopwatch = field(default_factory=Stopwatch)

    def step(self, num_tokens: int) -> float:
        """Take note of a step that just ended; return its seconds."""
        self.seconds.append(self._clock.lap())
        self.num_tokens += num_tokens
        return self.seconds[-1]

    @property
    def median_step_seconds(self) -> float | None:
        """None before the first step."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def tokens_per_second(self) -> float | None:
        """Real tokens of all arms together."""
        return self.num_tokens / sum(self.seconds) if self.seconds else None
