"""Where the tokens of each arm lie in a micro-batch whose arms have rows of their own.

    K arms of the pack, G neighbouring arms
    T tokens of all arms, L the most tokens of one arm, D any number of channels

If all arms see the same rows, a micro-batch is (K, N): every arm has the same N tokens. Otherwise it is one sequence,
(1, T): the rows of the first arm, then those of the second, and so on. There is no padding. Operations on single tokens
run on all of T. An operation with an arm's own weights runs on that arm's span. An arm without rows in a micro-batch has
an empty span.

On a CPU, spans are views. On a GPU a loop over arms would launch too many kernels. There `Padding` copies spans into a
regular (G, L, D) tensor with zeros after each arm's tokens, so that one batched product serves all arms. Its indices are
made once a micro-batch, and the host does not wait for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Spans:
    """The tokens, or the labels, of each arm in one sequence, arm after arm."""

    sizes_K: tuple[int, ...]
    arm_T: Tensor
    """The arm of each token, as its number in the pack."""
    place_T: Tensor
    """The place of each token in its arm's span."""
    num_K: Tensor
    """The sizes, on the device."""
    _paddings: dict[tuple[int, int], "Padding"] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        """The first token of each arm, and the end of the last one."""
        return 0, *accumulate(self.sizes_K)

    def padding(self, start: int, stop: int) -> "Padding":
        """The padding of the arms `start..stop`, made once."""
        if (start, stop) not in self._paddings:
            self._paddings[start, stop] = self._padding(start, stop)
        return self._paddings[start, stop]

    def _padding(self, start: int, stop: int) -> "Padding":
        sizes_G = self.sizes_K[start:stop]
        own = slice(self.bounds[start], self.bounds[stop])
        length = max(sizes_G)
        index_T = (self.arm_T[own] - start).mul_(length).add_(self.place_T[own])
        arms_G1 = torch.arange(start, stop + 1, device=self.arm_T.device)
        return Padding(
            sizes_G=sizes_G,
            length=length,
            ends_G1=torch.searchsorted(self.arm_T[own].contiguous(), arms_G1),
            index_T=index_T,
        )

    def sums(self, x_T: Tensor) -> Tensor:
        """The sum of each arm's values, (K,). An arm without values has 0, and no value reaches another arm's sum."""
        return self.padding(0, len(self.sizes_K)).padded(x_T[:, None]).sum(dim=(1, 2))

    def spread(self, x_K: Tensor) -> Tensor:
        """Each arm's value for each of its tokens, (T,)."""
        return x_K.index_select(0, self.arm_T)


@dataclass(frozen=True, kw_only=True)
class Padding:
    """Copies spans of neighbouring arms into a regular tensor, and back."""

    sizes_G: tuple[int, ...]
    length: int
    ends_G1: Tensor
    """The first token of each arm, counted from that of the first arm, and the end of the last one."""
    index_T: Tensor
    """The place of each token in the regular tensor."""

    def padded(self, x_TD: Tensor) -> Tensor:
        """(G, L, D), with zeros after each arm's tokens."""
        padded_GLD: Tensor = torch.ops.aten._jagged_to_padded_dense_forward(
            x_TD.contiguous(), [self.ends_G1], [self.length]
        )
        return padded_GLD

    def spans(self, x_GLD: Tensor) -> Tensor:
        """The inverse of `padded`, (T, D)."""
        return x_GLD.flatten(0, 1).index_select(0, self.index_T)


@dataclass(frozen=True, kw_only=True)
class ArmLayout:
    """The layout of a micro-batch whose arms have rows of their own."""

    tokens: Spans
    labels: Spans
    runs: tuple[tuple[int, int], ...]
    """Neighbouring arms that see the same rows, as the first arm and the arm after the last one. They share products."""
    order_T: Tensor
    """The tokens in the order of the buckets: by the length of their rows."""
    inverse_T: Tensor
    is_padded: bool
    """Whether spans are padded for products with an arm's weights."""

    def spans_of(self, num_tokens: int) -> Spans:
        """The spans in a tensor of that many tokens: of all tokens, or of the labelled ones alone.

        Both are never equal in number, since the first token of a row has no label.
        """
        return self.tokens if num_tokens == self.tokens.bounds[-1] else self.labels


def runs_of(rows_K: Sequence[object | None]) -> tuple[tuple[int, int], ...]:
    """The runs of neighbouring arms whose rows are the same object. Arms without rows (None) are in no run."""
    runs: list[tuple[int, int]] = []
    for number, rows in enumerate(rows_K):
        if rows is None:
            continue
        if runs and runs[-1][1] == number and rows_K[number - 1] is rows:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return tuple(runs)
