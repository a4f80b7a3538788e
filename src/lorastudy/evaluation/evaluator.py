"""The evaluator seam: held-out rows in, scores with a value for every item out."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from lorastudy.data.tokenise import TokenRow
from lorastudy.engine.arms import Scorer
from lorastudy.engine.loading import BaseModel
from lorastudy.protocol.records import Generation, Score

#: Tokens that all arms together may hold while rows are scored.
MAX_SCORED_TOKENS = 1 << 14


class Evaluator(Protocol):
    """Scores all of a scorer's adapters on the same rows. Leaves weights and later gradients as they were."""

    def evaluate(
        self, scorer: Scorer, rows: Sequence[TokenRow], *, base: BaseModel, split: str
    ) -> Iterator[Score | Generation]:
        """Yield a score per arm and metric; `items` follow the order of `rows`."""
        ...


def in_parts(rows: Sequence[TokenRow], *, num_arms: int) -> Iterator[list[int]]:
    """Row numbers, a batch at a time. Rows of a batch have similar lengths, so that padding is short."""
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
