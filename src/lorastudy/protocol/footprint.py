"""What one training step of a pack holds in memory, as a worker counted it on tensors without content."""

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


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The peak of one step, beyond the base model, adapters, gradients and optimizer state; all in bytes.

    `held_bytes` is what the forward pass leaves for the backward pass; `loss_bytes` what the loss adds to it, and 0 where
    the peak is in another phase.
    """

    phase: Phase
    """Where the peak is."""
    total_bytes: int
    held_bytes: int
    loss_bytes: int
    num_tensors: int
    """Tensors that live at the peak."""
    resident_bytes_per_parameter: float
    """Weights, gradients and moments of the adapters, for each trainable parameter."""

    def to_json(self) -> dict[str, Any]:
        """The footprint as plain JSON values; `from_json` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The footprint that `to_json` wrote."""
        return cls(**values)
