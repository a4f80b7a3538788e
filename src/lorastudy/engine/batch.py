"""Micro-batches without padding (rows laid end to end, each with its own positions), and the rows of every step.

    N  tokens of all rows       M  labelled tokens      B  rows

Rows are sorted by length, and rows of equal length form a bucket. Attention takes a bucket in one call and needs
neither padding nor a mask. Padding rows of similar length into fewer calls was slower on a CPU at every length
(docs/log.md).
"""

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorastudy.data.batches import micro_batches, rows_in_order
from lorastudy.data.tokenise import IGNORED, TokenRow, TokenSet
from lorastudy.suite.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Consecutive rows of one length. Attention takes them in one call."""

    num_rows: int
    length: int

    @property
    def num_tokens(self) -> int:
        """Tokens of all its rows."""
        return self.num_rows * self.length


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows laid end to end, on the device."""

    input_ids_N: Tensor
    position_ids_N: Tensor
    label_index_M: Tensor
    """Positions in N whose hidden states predict `targets_M`. A position is one before its target."""
    targets_M: Tensor
    label_row_M: Tensor
    """The row of each label, as numbered by the caller."""
    row_starts_B: Tensor
    """The first position of each row."""
    buckets: tuple[Bucket, ...]

    @property
    def num_tokens(self) -> int:
        """The number of tokens. There is no padding."""
        return self.input_ids_N.numel()

    @property
    def num_completion_tokens(self) -> int:
        """Tokens that carry a loss."""
        return self.targets_M.numel()


def assemble(rows: Sequence[TokenRow], *, device: torch.device) -> Batch:
    """A batch of the rows end to end, shortest first. `label_row_M` numbers them in the given order."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    ids: list[int] = []
    positions: list[int] = []
    label_index: list[int] = []
    targets: list[int] = []
    label_row: list[int] = []
    row_starts: list[int] = []
    for row_number in order:
        row = rows[row_number]
        start = len(ids)
        row_starts.append(start)
        ids.extend(row.input_ids)
        positions.extend(range(len(row.input_ids)))
        for place, label in enumerate(row.labels[1:]):
            if label != IGNORED:
                label_index.append(start + place)
                targets.append(label)
                label_row.append(row_number)
    tensors = _on_device((ids, positions, label_index, targets, label_row, row_starts), device=device)
    return Batch(
        input_ids_N=tensors[0],
        position_ids_N=tensors[1],
        label_index_M=tensors[2],
        targets_M=tensors[3],
        label_row_M=tensors[4],
        row_starts_B=tensors[5],
        buckets=tuple(
            Bucket(num_rows=len(list(same)), length=length)
            for length, same in itertools.groupby(len(rows[number].input_ids) for number in order)
        ),
    )


def _on_device(lists: Sequence[Sequence[int]], *, device: torch.device) -> tuple[Tensor, ...]:
    """The lists as tensors on the device, in one copy. The host does not wait for a GPU, since the source is pinned."""
    flat = torch.tensor([number for part in lists for number in part])
    if device.type == "cuda":
        flat = flat.pin_memory()
    return torch.split(flat.to(device, non_blocking=True), [len(part) for part in lists])


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The rows of every optimizer step, equal for all arms of a pack. Steps are assembled on demand."""

    train: TokenSet
    row_numbers: list[list[list[int]]]
    """Row numbers by optimizer step, by micro-batch, and by position in it."""
    device: torch.device

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return len(self.row_numbers)

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of a step, counted from 0."""
        return [
            assemble([self.train.rows[row] for row in rows], device=self.device)
            for rows in self.row_numbers[number]
        ]

    def steps(self, *, start: int = 0, stop: int | None = None) -> Iterator[list[Batch]]:
        """The steps from `start` up to `stop`, or to the end."""
        return (self.step(number) for number in range(start, self.num_steps if stop is None else stop))

    def typical_step(self) -> list[Batch]:
        """The first step with the median number of tokens; the lower of two medians."""
        sizes = [sum(map(self._num_tokens, micro_batches)) for micro_batches in self.row_numbers]
        return self.step(sizes.index(statistics.median_low(sizes)))

    def largest_step(self) -> list[Batch]:
        """The step whose biggest micro-batch has the most tokens."""

        def size(number: int) -> int:
            return max(map(self._num_tokens, self.row_numbers[number]))

        return self.step(max(range(self.num_steps), key=size))

    def _num_tokens(self, rows: Sequence[int]) -> int:
        return sum(map(self.train.rows.num_tokens, rows))


def plan_batches(
    train: TokenSet, settings: Settings, *, data_seed: int, num_steps: int, device: torch.device
) -> BatchPlan:
    """The rows in the order of the pack's `data_seed` (`Experiment.data_seed`), cut into micro-batches and steps."""
    size, accumulation = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    order = rows_in_order(
        train.num_given,
        data_seed=data_seed,
        num_rows_needed=num_steps * size * accumulation,
        refused=train.refused,
        places=train.places,
    )
    row_numbers = micro_batches(order, batch_size=size, accumulation=accumulation)
    return BatchPlan(train=train, row_numbers=row_numbers, device=device)
