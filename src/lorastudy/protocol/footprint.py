"""The memory of one training step of a pack, as a worker counts it on tensors without content."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

Phase = Literal["forward", "loss", "backward", "optimizer"]


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The lengths of the rows of one forward pass, and the number of tokens that carry a loss."""

    row_lengths: tuple[int, ...]
    num_labels: int

    @property
    def num_tokens(self) -> int:
        """Real tokens; there is no padding."""
        return sum(self.row_lengths)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The peak memory of one step in bytes, without base model, adapters, gradients and optimizer state.

    `held_bytes` is the memory that the forward pass keeps for the backward pass. `loss_bytes` is the memory that the
    loss adds to it, or 0 if the peak is in another phase.
    """

    phase: Phase
    """The phase with the peak."""
    total_bytes: int
    held_bytes: int
    loss_bytes: int
    num_tensors: int
    """Tensors alive at the peak."""
    resident_bytes_per_parameter: float
    """Bytes of the adapters' weights, gradients and moments, divided by the number of trainable parameters."""

    def to_json(self) -> dict[str, Any]:
        """The footprint as plain JSON values; `from_json` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The footprint that `to_json` wrote."""
        return cls(**values)
