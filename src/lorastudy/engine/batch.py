"""A micro-batch without padding: rows laid end to end, each with its own positions.

    N  tokens of all rows       M  labelled tokens

Rows are sorted by length, and equally long ones form a bucket: attention takes a bucket in one call, and
needs neither padding nor a mask. Padding rows of like length into fewer calls was slower throughout on a
CPU, for rows of ten tokens as for rows of hundreds (docs/log.md).
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
    """Consecutive rows of one length, which attend in one call."""

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
    """Places whose *next* token is trained: the hidden state there predicts `targets_M`."""
    targets_M: Tensor
    label_row_M: Tensor
    """Which of the rows, as numbered by the caller, each label belongs to."""
    buckets: tuple[Bucket, ...]

    @property
    def num_tokens(self) -> int:
        """Real tokens; there is no padding to count."""
        return self.input_ids_N.numel()

    @property
    def num_completion_tokens(self) -> int:
        """Tokens that carry a loss."""
        return self.targets_M.numel()


def assemble(rows: Sequence[TokenRow], *, device: torch.device) -> Batch:
    """Lay the rows end to end, shortest first. `label_row_M` numbers them as given."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    ids: list[int] = []
    positions: list[int] = []
    label_index: list[int] = []
    targets: list[int] = []
    label_row: list[int] = []
    for row_number in order:
        row = rows[row_number]
        start = len(ids)
        ids.extend(row.input_ids)
        positions.extend(range(len(row.input_ids)))
        for place, label in enumerate(row.labels[1:]):
            if label != IGNORED:
                label_index.append(start + place)
                targets.append(label)
                label_row.append(row_number)
    return Batch(
        input_ids_N=torch.tensor(ids, device=device),
        position_ids_N=torch.tensor(positions, device=device),
        label_index_M=torch.tensor(label_index, device=device),
        targets_M=torch.tensor(targets, device=device),
        label_row_M=torch.tensor(label_row, device=device),
        buckets=tuple(
            Bucket(num_rows=len(list(same)), length=length)
            for length, same in itertools.groupby(len(rows[number].input_ids) for number in order)
        ),
    )


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Training rows and the plan of every step."""

    train: TokenSet
    plan: list[list[list[int]]]
    """Row numbers by optimizer step, by micro-batch, by place."""
    device: torch.device

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of a step, counted from 0."""
        return [
            assemble([self.train.rows[row] for row in rows], device=self.device) for rows in self.plan[number]
        ]

    def steps(self, *, start: int = 0, stop: int | None = None) -> Iterator[list[Batch]]:
        """The steps from `start` on, up to `stop` or to the end, assembled as they are needed."""
        return (self.step(number) for number in range(start, len(self.plan) if stop is None else stop))

    def typical_step(self) -> list[Batch]:
        """The first step that has the median number of tokens; of two in the middle the smaller."""
        sizes = [sum(map(self._num_tokens, micro_batches)) for micro_batches in self.plan]
        return self.step(sizes.index(statistics.median_low(sizes)))

    def largest_step(self) -> list[Batch]:
        """The step whose biggest micro-batch has the most tokens."""

        def size(number: int) -> int:
            return max(map(self._num_tokens, self.plan[number]))

        return self.step(max(range(len(self.plan)), key=size))

    def _num_tokens(self, rows: Sequence[int]) -> int:
        return sum(map(self.train.rows.num_tokens, rows))


def plan_batches(
    train: TokenSet, settings: Settings, *, data_seed: int, num_steps: int, device: torch.device
) -> BatchPlan:
    """Every step's rows, equal for all arms: a function of `data_seed`, which is the pack's (`Experiment.data_seed`)."""
    size, accumulation = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    order = rows_in_order(
        train.num_given,
        data_seed=data_seed,
        num_rows_needed=num_steps * size * accumulation,
        refused=train.refused,
        places=train.places,
    )
    plan = micro_batches(order, batch_size=size, accumulation=accumulation)
    return BatchPlan(train=train, plan=plan, device=device)
