"""Which learning rates to try for an adapter, before anything is known of it, and which next.

Rates stand on one ladder for all models: 1, 2 and 5 times a power of ten. So the grids of two arms share their
rates and train as one pack, and a rate has a short name. A rung is the number of a rate on that ladder.

The published rule ("LoRA Without Regret", 2025; 14 models): the best rate for an adapter is about ten times that
of full fine-tuning, and falls with the hidden size h as

    5e-5 * 10 * (2000 / h) ** p,     p = 0.781 for Llama, 0.0775 for Qwen;

below about a hundred steps it is nearer fifteen times.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Rate for full fine-tuning at the rule's hidden size, and how many times that an adapter wants.
FULL_RATE, HIDDEN_SIZE = 5e-5, 2000
TIMES_FULL, TIMES_FULL_WHEN_SHORT, SHORT_STEPS = 10, 15, 100
#: By the beginning of `model_type` in `config.json`.
POWERS: Mapping[str, float] = {"llama": 0.781, "qwen": 0.0775}
#: Rungs to each side of a rate that the rule gives, and of one that nothing is known of.
AROUND_KNOWN, AROUND_UNKNOWN = 1, 2
#: Rungs beyond the first grid at which the search gives up, to either side: a factor of a hundred.
MAX_RUNGS_BEYOND = 6

_MANTISSAS = (1, 2, 5)

Rungs = range


def rate_of(rung: int) -> float:
    """The rate of a rung: 1 at 0, 2 at 1, 5 at 2, 10 at 3, 0.5 at -1."""
    power, step = divmod(rung, len(_MANTISSAS))
    return float(f"{_MANTISSAS[step]}e{power}")


def nearest_rung(rate: float) -> int:
    """The rung whose rate is nearest by ratio."""
    below = len(_MANTISSAS) * math.floor(math.log10(rate))
    return min(
        range(below, below + len(_MANTISSAS) + 1), key=lambda rung: abs(math.log(rate_of(rung) / rate))
    )


def published_rate(*, hidden_size: int, power: float, num_steps: int | None) -> float:
    """What the rule says; without a number of steps as if there were many."""
    is_short = num_steps is not None and num_steps < SHORT_STEPS
    times = TIMES_FULL_WHEN_SHORT if is_short else TIMES_FULL
    return float(FULL_RATE * times * (HIDDEN_SIZE / hidden_size) ** power)


def published_rates(config: Mapping[str, Any] | None, *, num_steps: int | None) -> tuple[float, ...]:
    """What the rule says for a base model with this `config.json`; None: nothing is known of it.

    One rate for a family that the rule knows; for another those that each family would have at this size.
    """
    hidden_size = HIDDEN_SIZE if config is None else int(config.get("hidden_size") or HIDDEN_SIZE)
    return tuple(
        published_rate(hidden_size=hidden_size, power=power, num_steps=num_steps)
        for power in _powers(config) or POWERS.values()
    )


def _powers(config: Mapping[str, Any] | None) -> list[float]:
    """Of the model's family, if the rule knows it."""
    family = "" if config is None else str(config.get("model_type", ""))
    return [power for name, power in POWERS.items() if family.startswith(name)]


def as_shown(rate: float) -> float:
    """A rate that a rule came to, with two digits: more of them would claim more than the rule knows."""
    return float(f"{rate:.2g}")


def first_rungs(config: Mapping[str, Any] | None, *, num_steps: int | None) -> Rungs:
    """The rungs to try first for a base model with this `config.json`; None: nothing is known of it.

    A family that the rule knows: its rate and a rung to each side. Another: from the lowest to the highest rate
    that any family would have at this size, and two rungs to each side.
    """
    rungs = [nearest_rung(rate) for rate in published_rates(config, num_steps=num_steps)]
    around = AROUND_KNOWN if _powers(config) else AROUND_UNKNOWN
    return Rungs(min(rungs) - around, max(rungs) + around + 1)


#: How far the lowest point of a parabola lies from that of the curve, as a share of the step between rates: a curve is no
#: parabola. Root mean square beyond what noise explains, on the recorded grid where it is largest: a language model on real
#: rows; 0.14 on the lab (`benchmarks.replay_rate_search`).
SHAPE_ERROR = 0.37


@dataclass(frozen=True, kw_only=True)
class Parabola:
    """The parabola through three losses over the natural log of the learning rate, with its lowest point between them."""

    rate: float
    """Where it is lowest."""
    step: float
    """Half the way from the lowest to the highest of the three rates, in log rate."""
    curvature: float
    """Loss at a distance d of log rate: the lowest, plus `curvature` times d squared."""
    slopes: tuple[float, float, float]
    """How the log of `rate` moves with each of the three losses, in log rate per unit of loss."""

    def spread(self, loss_sd: float) -> float:
        """Standard deviation of the log of `rate` where each loss has this one of its own (the delta method)."""
        return loss_sd * math.sqrt(math.fsum(slope**2 for slope in self.slopes))

    def factor(self, loss_sd: float, *, taken: float) -> float:
        """The factor of the rate `taken` within which the best rate lies, in 95 of 100 cases.

        exp(|log(rate / taken)| + 1.96 s), where s has two parts: the losses' noise, and that a curve is no parabola.
        """
        deviation = math.hypot(self.spread(loss_sd), SHAPE_ERROR * self.step)
        return math.exp(abs(math.log(self.rate / taken)) + 1.96 * deviation)


def parabola(points: Sequence[tuple[float, float]]) -> Parabola | None:
    """The parabola through three (rate, loss), of which the middle one is lowest; None where it has no lowest point.

    With x the log rates, d = (y1 - y0) / (x1 - x0) and e = (y2 - y1) / (x2 - x1) its slopes and c = (e - d) / (x2 - x0)
    its curvature, the lowest point is (x0 + x1) / 2 - d / (2 c) (Newton's form of the interpolation). It lies between
    the middles of the two steps, since the middle loss is the lowest. A rate beside one that diverged has no parabola:
    infinity tells a side, and no distance.
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
