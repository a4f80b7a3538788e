"""The ladder of learning rates, the published rule for the first rates to try, and the parabola that finds the best.

All models share one ladder of rates: 1, 2 and 5 times a power of ten. So the grids of two arms share their rates, and
a rate has a short name. A rung here is the number of a rate on that ladder.

The published rule ("LoRA Without Regret", 2025; 14 models): the best rate for an adapter is about ten times that
of full fine-tuning, and falls with the hidden size h as

    5e-5 * 10 * (2000 / h) ** p,     p = 0.781 for Llama, 0.0775 for Qwen;

below about a hundred steps the factor is nearer fifteen than ten.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: The rate for full fine-tuning at the rule's hidden size.
FULL_RATE, HIDDEN_SIZE = 5e-5, 2000
#: The factor of an adapter's rate over that of full fine-tuning; the second below `SHORT_STEPS` steps.
TIMES_FULL, TIMES_FULL_WHEN_SHORT, SHORT_STEPS = 10, 15, 100
#: The exponent p by the beginning of `model_type` in `config.json`.
POWERS: Mapping[str, float] = {"llama": 0.781, "qwen": 0.0775}
#: Rungs to each side of the rule's rate, for a known and for an unknown family.
AROUND_KNOWN, AROUND_UNKNOWN = 1, 2
#: The search gives up this many rungs beyond the first grid, on either side: a factor of a hundred.
MAX_RUNGS_BEYOND = 6

_MANTISSAS = (1, 2, 5)

Rungs = range


def rate_of(rung: int) -> float:
    """The rate of a rung: 1 at 0, 2 at 1, 5 at 2, 10 at 3, 0.5 at -1."""
    power, step = divmod(rung, len(_MANTISSAS))
    return float(f"{_MANTISSAS[step]}e{power}")


def nearest_rung(rate: float) -> int:
    """The rung whose rate has the ratio nearest to 1."""
    below = len(_MANTISSAS) * math.floor(math.log10(rate))
    return min(
        range(below, below + len(_MANTISSAS) + 1), key=lambda rung: abs(math.log(rate_of(rung) / rate))
    )


def published_rate(*, hidden_size: int, power: float, num_steps: int | None) -> float:
    """The rate by the published rule. An unknown number of steps counts as large."""
    is_short = num_steps is not None and num_steps < SHORT_STEPS
    times = TIMES_FULL_WHEN_SHORT if is_short else TIMES_FULL
    return float(FULL_RATE * times * (HIDDEN_SIZE / hidden_size) ** power)


def published_rates(config: Mapping[str, Any] | None, *, num_steps: int | None) -> tuple[float, ...]:
    """The rates by the published rule for a base model with this `config.json`; None if the file is not known.

    A known family has one rate. An unknown family has one rate for each known family, at this model's hidden size.
    """
    hidden_size = HIDDEN_SIZE if config is None else int(config.get("hidden_size") or HIDDEN_SIZE)
    return tuple(
        published_rate(hidden_size=hidden_size, power=power, num_steps=num_steps)
        for power in _powers(config) or POWERS.values()
    )


def _powers(config: Mapping[str, Any] | None) -> list[float]:
    """The exponent of the model's family; empty if the rule does not know the family."""
    family = "" if config is None else str(config.get("model_type", ""))
    return [power for name, power in POWERS.items() if family.startswith(name)]


def as_shown(rate: float) -> float:
    """The rate with two digits: more would claim more precision than the rule has."""
    return float(f"{rate:.2g}")


def first_rungs(config: Mapping[str, Any] | None, *, num_steps: int | None) -> Rungs:
    """The rungs to try first for a base model with this `config.json`; None if the file is not known.

    A known family: its rate and a rung to each side. An unknown family: from the lowest to the highest rate of the
    known families at this hidden size, and two rungs to each side.
    """
    rungs = [nearest_rung(rate) for rate in published_rates(config, num_steps=num_steps)]
    around = AROUND_KNOWN if _powers(config) else AROUND_UNKNOWN
    return Rungs(min(rungs) - around, max(rungs) + around + 1)


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
