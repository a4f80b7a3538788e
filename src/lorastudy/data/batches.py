"""Which rows each training step sees: a pure function of the data seed, equal for every arm.

Rows are reshuffled for every epoch. A batch that an epoch cannot fill takes the first rows of the next one, so
every step has the same number of rows, and no step weighs less than another.
"""

import hashlib
import heapq
import math
from collections.abc import Collection

from lorastudy.spec.settings import Settings


def row_order(num_rows: int, *, data_seed: int, num_rows_needed: int) -> list[int]:
    """The first `num_rows_needed` row numbers of shuffled epoch after shuffled epoch."""
    assert num_rows > 0
    order: list[int] = []
    epoch = 0
    while len(order) < num_rows_needed:
        missing = num_rows_needed - len(order)
        order += _shuffled(num_rows, data_seed=data_seed, epoch=epoch, num_first=min(missing, num_rows))
        epoch += 1
    return order


def usable_order(
    num_rows: int, *, data_seed: int, num_rows_needed: int, refused: Collection[int]
) -> list[int]:
    """As `row_order`, without the rows that are refused; at least one is not."""
    assert len(refused) < num_rows
    num_looked_at = num_rows_needed
    while True:
        order = row_order(num_rows, data_seed=data_seed, num_rows_needed=num_looked_at)
        usable = [row for row in order if row not in refused]
        if len(usable) >= num_rows_needed:
            return usable[:num_rows_needed]
        num_looked_at += max(num_rows_needed - len(usable), num_looked_at // 2)


def micro_batches(
    num_rows: int,
    *,
    data_seed: int,
    steps: int,
    batch_size: int,
    accumulation: int,
    refused: Collection[int] = frozenset(),
) -> list[list[list[int]]]:
    """Row numbers by optimizer step, by forward pass within the step, by place in the batch."""
    needed = steps * accumulation * batch_size
    order = usable_order(num_rows, data_seed=data_seed, num_rows_needed=needed, refused=refused)
    batches = [order[start : start + batch_size] for start in range(0, needed, batch_size)]
    return [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]


def steps_of(settings: Settings, *, num_rows: int) -> int:
    """Optimizer steps of an experiment over this many training rows. Plan, dry run and training all count by it."""
    if settings.max_steps is not None:
        return settings.max_steps
    return num_steps(
        num_rows,
        epochs=settings.num_train_epochs or 1.0,
        batch_size=settings.per_device_train_batch_size,
        accumulation=settings.gradient_accumulation_steps,
    )


def num_steps(num_rows: int, *, epochs: float, batch_size: int, accumulation: int) -> int:
    """Optimizer steps until every row was seen `epochs` times, the last one filled up.

    `epochs` may be a fraction; the product is rounded first, as 3 * 0.1 * 10 is a little more than 3.
    """
    return max(1, math.ceil(round(num_rows * epochs / (batch_size * accumulation), 6)))


def _shuffled(num_rows: int, *, data_seed: int, epoch: int, num_first: int) -> list[int]:
    """The first row numbers in the order of their hashes, which no library version and no platform changes."""

    def key(row: int) -> bytes:
        return hashlib.sha256(f"{data_seed}:{epoch}:{row}".encode()).digest()

    return heapq.nsmallest(num_first, range(num_rows), key=key)
