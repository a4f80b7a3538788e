"""Seconds of a step, from a calibration: real steps that a worker timed on this machine.

One part of a step does not depend on the tokens (launches, the optimizer); the other grows with the tokens of all
arms:   seconds = a + b x arms x tokens, with a and b by least squares and neither below 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class PacePoint:
    """A timed step. `num_tokens` counts the tokens of all arms."""

    num_arms: int
    num_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all arms per second."""
        return self.num_tokens / self.seconds


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Timed steps of one model, one precision and one choice of modules, on one machine."""

    points: tuple[PacePoint, ...]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The calibration in a worker's answer."""
        return cls(points=tuple(PacePoint(**point) for point in values["points"]))

    def step_seconds(self, num_tokens: float) -> float:
        """Seconds of a forward and backward pass over the tokens of all arms, and of the optimizer's step."""
        fixed, per_token = _line([(float(p.num_tokens), p.seconds) for p in self.points])
        return fixed + per_token * num_tokens

    def best_num_arms(self, *, at_most: int) -> int:
        """The number of arms per pack, up to `at_most`, with the most tokens a second.

        Only measured numbers are chosen, because the speed of larger packs is not known.
        """
        allowed = [point for point in self.points if point.num_arms <= at_most]
        if not allowed:
            return at_most
        return max(allowed, key=lambda point: point.tokens_per_second).num_arms


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope by least squares. A line through the origin if either would be negative."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    if slope <= 0 or mean_y - slope * mean_x < 0:
        return (0.0, sum(x * y for x, y in points) / sum(x * x for x, _ in points))
    return mean_y - slope * mean_x, slope
