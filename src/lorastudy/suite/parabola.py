"""The learning rate at which a parabola through three losses is lowest, and how far the best rate may be from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: The error from taking the loss curve for a parabola: the distance between their lowest points, as a share of the step
#: between rates. It is the root mean square beyond the noise, on the recorded grid with the largest error: a language
#: model on real rows. The lab has 0.14 (`benchmarks.replay_rate_search`).
SHAPE_ERROR = 0.37


@dataclass(frozen=True, kw_only=True)
class Parabola:
    """A parabola through three losses over the natural log of the learning rate. Its lowest point lies between them."""

    rate: float
    """The learning rate at the lowest point."""
    step: float
    """Half the distance between the lowest and the highest of the three rates, in log rate."""
    curvature: float
    """The loss at a distance d in log rate is the lowest loss plus `curvature` times d squared."""
    slopes: tuple[float, float, float]
    """The derivative of the log of `rate` by each of the three losses, in log rate per unit of loss."""

    def spread(self, loss_sd: float) -> float:
        """Standard deviation of the log of `rate` if each loss has the standard deviation `loss_sd` (delta method)."""
        return loss_sd * math.sqrt(math.fsum(slope**2 for slope in self.slopes))

    def factor(self, loss_sd: float, *, taken: float) -> float:
        """The factor within which the best rate lies around the rate `taken`, in 95 of 100 cases.

        exp(|log(rate / taken)| + 1.96 s), where s combines the noise of the losses (`spread`) and `SHAPE_ERROR`.
        """
        deviation = math.hypot(self.spread(loss_sd), SHAPE_ERROR * self.step)
        return math.exp(abs(math.log(self.rate / taken)) + 1.96 * deviation)


def parabola(points: Sequence[tuple[float, float]]) -> Parabola | None:
    """The parabola through three points (rate, loss), the middle one lowest; None if it has no lowest point.

    With log rates x, slopes d = (y1 - y0) / (x1 - x0) and e = (y2 - y1) / (x2 - x1), and curvature
    c = (e - d) / (x2 - x0), the lowest point is (x0 + x1) / 2 - d / (2 c) (Newton's form of the interpolation). It lies
    between the middles of the two steps, because the middle loss is the lowest. Next to a diverged rate there is no
    parabola: an infinite loss shows the better side, but no distance.
    """
    x, y = [math.log(rate) for rate, _ in points], [loss for _, loss in points]
    if not all(map(math.isfinite, y)):
        return None
    left, right, both = x[1] - x[0], x[2] - x[1], x[2] - x[0]
    d, e = (y[1] - y[0]) / left, (y[2] - y[1]) / right
    curvature = (e - d) / both
    if curvature <= 0:
        return None
    # the derivatives of d and of the curvature by y0, y1, y2
    of_d = (-1 / left, 1 / left, 0.0)
    of_c = (1 / (left * both), -1 / (left * right), 1 / (right * both))
    slopes = [(-dd + d / curvature * dc) / (2 * curvature) for dd, dc in zip(of_d, of_c, strict=True)]
    return Parabola(
        rate=math.exp((x[0] + x[1]) / 2 - d / (2 * curvature)),
        step=both / 2,
        curvature=curvature,
        slopes=(slopes[0], slopes[1], slopes[2]),
    )
