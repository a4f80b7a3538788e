"""What a training step holds in memory, as counted on tensors without content, and what it depends on.

A step of the packed engine allocates and frees the same tensors in the same order whatever its size, and each
has as many bytes as a product of a few sizes. So the bytes held at one moment of the step are a polynomial in
those sizes, and the peak is the greatest of these polynomials. The worker counts them (`engine/counting.py`);
the planner evaluates them.

    K arms, N tokens and M labels of a micro-batch, S tokens of one of its rows, r rank
"""

import bisect
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

Phase = Literal["forward", "loss", "backward", "optimizer"]


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows of one forward pass, by their lengths, and how many of their tokens carry a loss."""

    row_lengths: tuple[int, ...]
    num_labels: int

    @property
    def num_tokens(self) -> int:
        """Real tokens; there is no padding."""
        return sum(self.row_lengths)

    @property
    def has_equal_rows(self) -> bool:
        """Whether attention takes all rows in one call."""
        return len(set(self.row_lengths)) == 1


@dataclass(frozen=True, kw_only=True)
class Load:
    """The sizes that the bytes of a step depend on."""

    num_arms: int
    num_tokens: int
    num_labels: int
    num_squares: int
    """Sum over the rows of their length squared: what attention without a fused kernel holds."""
    rank: float
    """Of the largest group of equal-shaped arms: ranks summed over its arms."""
    rank_all: float
    """Ranks summed over all arms."""

    def monomials(self) -> tuple[float, ...]:
        """The products that the coefficients belong to: 1, K, N, KN, M, KM, r, N r, K S^2."""
        arms, tokens, labels = self.num_arms, self.num_tokens, self.num_labels
        return (
            1.0, arms, tokens, arms * tokens, labels, arms * labels, self.rank, tokens * self.rank_all,
            arms * self.num_squares,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One moment of a step: what is held then beyond what is there before the step.

    `coefficients` are those of the layers that were counted; each further layer adds `per_layer`.
    """

    phase: Phase
    coefficients: tuple[float, ...]
    per_layer: tuple[float, ...]
    num_tensors: int
    num_tensors_per_layer: int

    def num_bytes(self, load: Load, *, num_further_layers: int) -> float:
        """Bytes held at that moment."""
        return sum(
            (own + num_further_layers * further) * size
            for own, further, size in zip(self.coefficients, self.per_layer, load.monomials(), strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class StepPeak:
    """The greatest of all moments under a load.

    `held_bytes` is what the forward pass leaves for the backward pass; `loss_bytes` what the loss needs on top.
    """

    phase: Phase
    total_bytes: float
    held_bytes: float
    loss_bytes: float
    num_tensors: int


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """A step's moments, as counted for one model, choice of modules and precision.

    Models of equal layers are counted at a few layers, and what a layer adds is carried on to the others.
    """

    moments: tuple[Moment, ...]
    at_loss: Moment
    """When the loss begins: the forward pass is through, and holds all it keeps."""
    num_further_layers: int
    loss_growth: tuple[tuple[int, int], ...]
    """(arms x labels, bytes that the loss takes at most beyond what was there), at the places where it bends."""
    resident_bytes_per_parameter: float
    """Weights, gradients and moments of the adapters, for each trainable parameter."""
    largest_residual: float
    """By how much a counted moment differs from its polynomial at most, relative to the step's peak."""

    def peak(self, load: Load) -> StepPeak:
        """The step's peak under a load, beyond base model, adapters, gradients and optimizer state."""
        held = self._bytes(self.at_loss, load)
        growth = self.loss_bytes(load)
        at_peak = max(self.moments, key=lambda moment: self._bytes(moment, load))
        total = self._bytes(at_peak, load)
        if held + growth >= total:
            at_peak, total = self.at_loss, held + growth
        return StepPeak(
            phase=at_peak.phase,
            total_bytes=total,
            held_bytes=min(held, total),
            loss_bytes=growth if at_peak is self.at_loss else 0.0,
            num_tensors=at_peak.num_tensors + at_peak.num_tensors_per_layer * self.num_further_layers,
        )

    def loss_bytes(self, load: Load) -> float:
        """What the loss takes at most beyond what was there when it began: straight lines between its bends."""
        rows = load.num_arms * load.num_labels
        points = self.loss_growth
        left = min(max(0, bisect.bisect_right(points, (rows, 0)) - 1), len(points) - 2)
        (low, at_low), (high, at_high) = points[left : left + 2]
        return max(0.0, at_low + (at_high - at_low) / (high - low) * (rows - low))

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values; `from_json` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The footprint that `to_json` wrote."""
        return cls(
            **{
                **values,
                "moments": tuple(_moment(moment) for moment in values["moments"]),
                "at_loss": _moment(values["at_loss"]),
                "loss_growth": tuple((rows, growth) for rows, growth in values["loss_growth"]),
            }
        )

    def _bytes(self, moment: Moment, load: Load) -> float:
        return moment.num_bytes(load, num_further_layers=self.num_further_layers)


def _moment(values: Mapping[str, Any]) -> Moment:
    tuples = {key: tuple(values[key]) for key in ("coefficients", "per_layer")}
    return Moment(**{**values, **tuples})
