"""Which rows each training step sees: a pure function of the data seed, equal for every arm.

Rows are reshuffled for every epoch. A batch that an epoch cannot fill takes the first rows of the next one, so
every step has the same number of rows, and no step weighs less than another.
"""

import hashlib
import heapq
import math
from collections.abc import Collection, Sequence

from lorastudy.suite.settings import Settings

#: Texts among which the pieces of a long one are strewn.
PIECES_APART = 256


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


def rows_in_order(
    num_given: int,
    *,
    data_seed: int,
    num_rows_needed: int,
    refused: Collection[int],
    places: Sequence[int],
) -> list[int]:
    """The numbers of the first rows to train on. `places` has for each row the place of what it was made of, rising.

    An epoch goes through all that was given as `row_order` has it. Of a text in pieces, which are rows in one place, one
    piece takes the place of the text, drawn at random; the others are put off, each by up to `PIECES_APART` texts, so that
    a batch is not all of one text. As nothing moves forward, the first n that were given tell the first n rows.
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
    """The first row of each place, and how many there are, where there is more than one."""
    first_rows: dict[int, int] = {}
    num_pieces: dict[int, int] = {}
    for row, place in enumerate(places):
        if first_rows.setdefault(place, row) != row:
            num_pieces[place] = row - first_rows[place] + 1
    return first_rows, num_pieces


def _delays(num_pieces: int, *, of: str) -> list[tuple[float, int]]:
    """Each piece of a text, and by how many texts it is put off; one is not."""
    if num_pieces == 1:
        return [(0.0, 0)]
    digests = (hashlib.sha256(f"{of}:{piece}".encode()).digest() for piece in range(num_pieces))
    (_, first), *others = sorted((digest, piece) for piece, digest in enumerate(digests))
    delays = ((int.from_bytes(digest[:6], "big") / 2**48, piece) for digest, piece in others)
    return [(0.0, first), *((PIECES_APART * share, piece) for share, piece in delays)]


def micro_batches(order: Sequence[int], *, batch_size: int, accumulation: int) -> list[list[list[int]]]:
    """Row numbers by optimizer step, by forward pass within the step, by place in the batch."""
    batches = [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
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
