"""The batches of a pack: which rows each step sees, laid end to end when the step comes."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lorastudy.data.batches import micro_batches, rows_in_order
from lorastudy.data.tokenise import TokenSet
from lorastudy.engine.batch import Batch, assemble
from lorastudy.suite.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Feed:
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


def make_feed(
    train: TokenSet, settings: Settings, *, data_seed: int, num_steps: int, device: torch.device
) -> Feed:
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
    return Feed(train=train, plan=plan, device=device)
