"""The training rows of a pack as an estimate needs them: its largest micro-batch, and the tokens of its steps.

Arms with one order of the rows see one micro-batch. Arms of several orders train each its own rows side by side, so a
pack's largest micro-batch is the largest sum over its arms in one round, not the sum of the largest ones.
"""

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorastudy.protocol.jobs import MicroBatch
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Lengths and number of a pack's training rows; without a data set, every row has the maximum length."""

    batch: MicroBatch
    num_steps: int | None
    mean_tokens_per_step: float
    """The mean over all orders of the rows."""
    mean_tokens_by_order: Mapping[int, float] = field(default_factory=dict)
    """The tokens of a step, by data seed. Empty without a data set."""
    rounds: tuple[Mapping[int, MicroBatch], ...] = ()
    """Micro-batches that several orders train side by side, by data seed: the largest ones. Empty without a data set."""

    def tokens_per_step(self, experiments: Iterable[Experiment]) -> float:
        """The mean tokens of a step of these experiments together, each in its own order."""
        return sum(
            self.mean_tokens_by_order.get(each.data_seed, self.mean_tokens_per_step) for each in experiments
        )

    def side_by_side(self, num_arms: Mapping[int, int]) -> dict[int, MicroBatch]:
        """The micro-batches of the largest round of a pack with so many arms of each order, by data seed."""
        rounds = self.rounds or (dict.fromkeys(num_arms, self.batch),)
        largest = max(
            rounds,
            key=lambda batches: sum(number * batches[seed].num_tokens for seed, number in num_arms.items()),
        )
        return {seed: largest[seed] for seed in sorted(num_arms)}


def rows_of_answer(answer: Mapping[str, Any], *, data_seeds: Sequence[int], own: Collection[int]) -> Rows:
    """The rows from a worker's answer, whose orders are those of `data_seeds`. `own` are the orders of the experiments."""
    orders = dict(zip(data_seeds, answer["orders"], strict=True))
    means = {seed: order["mean_tokens_per_step"] for seed, order in orders.items()}
    return Rows(
        batch=max(map(_micro_batch, orders.values()), key=lambda batch: batch.num_tokens),
        num_steps=answer["num_steps"],
        mean_tokens_per_step=statistics.fmean(means[seed] for seed in sorted(own)),
        mean_tokens_by_order=means,
        rounds=tuple(
            dict(zip(data_seeds, map(_micro_batch, batches), strict=True)) for batches in answer["rounds"]
        ),
    )


def longest_rows(settings: Settings) -> Rows:
    """Rows of the maximum length. All tokens of a row but the first are trained."""
    num_rows, length = settings.per_device_train_batch_size, settings.max_seq_length
    return Rows(
        batch=MicroBatch(row_lengths=(length,) * num_rows, num_labels=num_rows * (length - 1)),
        num_steps=settings.max_steps,
        mean_tokens_per_step=float(num_rows * length * settings.gradient_accumulation_steps),
    )


def _micro_batch(values: Mapping[str, Any]) -> MicroBatch:
    return MicroBatch(row_lengths=tuple(values["row_lengths"]), num_labels=values["num_labels"])
