"""The evaluator seam: it takes held-out rows and gives scores with a value for every item."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from lorastudy.data.tokenise import TokenRow
from lorastudy.engine.arms import Scorer
from lorastudy.engine.loading import BaseModel
from lorastudy.protocol.records import Generation, Score

#: The most tokens in one scoring batch, summed over all arms.
MAX_SCORED_TOKENS = 1 << 14


class Evaluator(Protocol):
    """Scores all adapters of a scorer on the same rows. Changes neither weights nor later gradients."""

    def evaluate(
        self, scorer: Scorer, rows: Sequence[TokenRow], *, base: BaseModel, split: str
    ) -> Iterator[Score | Generation]:
        """Yield a score per arm and metric; `items` follow the order of `rows`."""
        ...


def in_parts(rows: Sequence[TokenRow], *, num_arms: int) -> Iterator[list[int]]:
    """Yield the row numbers of each batch. Rows of a batch have similar lengths, so that padding is short."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].input_ids))
    part: list[int] = []
    num_tokens = 0
    for number in order:
        length = len(rows[number].input_ids)
        if part and (num_tokens + length) * num_arms > MAX_SCORED_TOKENS:
            yield part
            part, num_tokens = [], 0
        part.append(number)
        num_tokens += length
    if part:
        yield part
