"""Which rows each training step sees: a pure function of the data seed, equal for every arm.

Rows are reshuffled for every epoch. A batch that an epoch cannot fill takes the first rows of the next one. Every step
therefore has the same number of rows, and the same weight.
"""

import hashlib
import heapq
import math
from collections.abc import Callable, Collection, Sequence

from lorastudy.suite.settings import Settings

#: The steps whose rows are sorted by length together, if the data set is large enough: transformers' number.
MAX_GROUPED_STEPS = 50

#: The pieces of a long text are spread over this many texts.
PIECES_APART = 256


def row_order(num_rows: int, *, data_seed: int, num_rows_needed: int) -> list[int]:
    """The first `num_rows_needed` row numbers of a sequence of shuffled epochs."""
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
    """The same as `row_order`, without refused rows. At least one row must not be refused."""
    assert len(refused) < num_rows
    num_looked_at = num_rows_needed
    while True:
        order = row_order(num_rows, data_seed=data_seed, num_rows_needed=num_looked_at)
        usable = [row for row in order if row not in refused]
        if len(usable) >= num_rows_needed:
            return usable[:num_rows_needed]
        num_looked_at += max(num_rows_needed - len(usable), num_looked_at // 2)


def rows_in_order(
    num_given: int,
    *,
    data_seed: int,
    num_rows_needed: int,
    refused: Collection[int],
    places: Sequence[int],
) -> list[int]:
    """The numbers of the first rows to train on. `places` has the place of each row's example, rising.

    An epoch goes through the examples in the order of `row_order`. The pieces of one text are rows with the same place.
    One piece, drawn at random, takes the place of the text. Each other piece is delayed by up to `PIECES_APART` texts,
    so that a batch is not all of one text. No piece moves forward, so the first n examples determine the first n rows.
    """
    first_rows, num_pieces = _pieces_by_place(places)
    if not num_pieces:
        usable = usable_order(
            num_given, data_seed=data_seed, num_rows_needed=num_rows_needed, refused=refused
        )
        return [first_rows[place] for place in usable]
    order: list[int] = []
    epoch = 0
    while (missing := num_rows_needed - len(order)) > 0:
        num_first = min(num_given, missing + len(refused))
        shuffled = _shuffled(num_given, data_seed=data_seed, epoch=epoch, num_first=num_first)
        ranked = [
            (rank + delay, first_rows[place] + piece)
            for rank, place in enumerate(shuffled)
            if place not in refused
            for delay, piece in _delays(num_pieces.get(place, 1), of=f"{data_seed}:{epoch}:{place}")
        ]
        order += [row for _, row in sorted(ranked)[:missing]]
        epoch += 1
    return order


def _pieces_by_place(places: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """The first row of each place, and the number of rows of each place that has several."""
    first_rows: dict[int, int] = {}
    num_pieces: dict[int, int] = {}
    for row, place in enumerate(places):
        if first_rows.setdefault(place, row) != row:
            num_pieces[place] = row - first_rows[place] + 1
    return first_rows, num_pieces


def _delays(num_pieces: int, *, of: str) -> list[tuple[float, int]]:
    """Each piece of a text with its delay in texts. One piece has no delay."""
    if num_pieces == 1:
        return [(0.0, 0)]
    digests = (hashlib.sha256(f"{of}:{piece}".encode()).digest() for piece in range(num_pieces))
    (_, first), *others = sorted((digest, piece) for piece, digest in enumerate(digests))
    delays = ((int.from_bytes(digest[:6], "big") / 2**48, piece) for digest, piece in others)
    return [(0.0, first), *((PIECES_APART * share, piece) for share, piece in delays)]


def rows_per_group(num_given: int, *, rows_per_step: int) -> int:
    """The rows that `grouped_by_length` sorts at once: those of 50 steps, or of a quarter of the data if that is less.

    As in transformers' `LengthGroupedSampler`. It does not depend on the length of the training, so an arm sees the same
    rows in any pack.
    """
    return rows_per_step * max(1, min(num_given // (4 * rows_per_step), MAX_GROUPED_STEPS))


def grouped_by_length(
    order: Sequence[int], *, num_tokens: Callable[[int], int], rows_per_group: int
) -> list[int]:
    """The rows, sorted within each group of consecutive ones: the longest first. Rows of equal length keep their order.

    Batches then hold rows of similar length. `order` has whole groups. transformers also moves the longest row of an epoch
    to its first place; here the first rows must not depend on those that a short training never reaches.
    """
    assert len(order) % rows_per_group == 0
    groups = [
        sorted(order[start : start + rows_per_group], key=num_tokens, reverse=True)
        for start in range(0, len(order), rows_per_group)
    ]
    return [row for group in groups for row in group]


def micro_batches(order: Sequence[int], *, batch_size: int, accumulation: int) -> list[list[list[int]]]:
    """Row numbers, nested by optimizer step, forward pass within the step, and place in the batch."""
    batches = [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
    return [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]


def steps_of(settings: Settings, *, num_rows: int) -> int:
    """Optimizer steps of an experiment over this many training rows. Plan, dry run and training all use this number."""
    if settings.max_steps is not None:
        return settings.max_steps
    return num_steps(
        num_rows,
        epochs=settings.num_train_epochs or 1.0,
        batch_size=settings.per_device_train_batch_size,
        accumulation=settings.gradient_accumulation_steps,
    )


def num_steps(num_rows: int, *, epochs: float, batch_size: int, accumulation: int) -> int:
    """Optimizer steps until every row was seen `epochs` times. The last step is filled up.

    `epochs` may be a fraction. The quotient is rounded to six decimals first, because 3 * 0.1 * 10 is slightly more
    than 3.
    """
    return max(1, math.ceil(round(num_rows * epochs / (batch_size * accumulation), 6)))


def _shuffled(num_rows: int, *, data_seed: int, epoch: int, num_first: int) -> list[int]:
    """The first row numbers in the order of their hashes, which are the same on every platform and library version."""

    def key(row: int) -> bytes:
        return hashlib.sha256(f"{data_seed}:{epoch}:{row}".encode()).digest()

    return heapq.nsmallest(num_first, range(num_rows), key=key)
