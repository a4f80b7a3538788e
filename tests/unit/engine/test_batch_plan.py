"""Which steps of a pack are measured before it trains."""

import tiny
from lorastudy.data.tokenise import TokenRows, TokenSet
from lorastudy.engine.batch import BatchPlan
from lorastudy.protocol.records import DataSummary

LENGTHS = (3, 5, 7, 9, 11, 4)
SUMMARY = DataSummary(
    split="train", format="alpaca", num_rows=len(LENGTHS), num_refused_rows=0, num_truncated_rows=0,
    num_tokens=sum(LENGTHS), num_completion_tokens=sum(LENGTHS) - len(LENGTHS),
)  # fmt: skip


def feed_of(plan):
    """A batch plan over rows of `LENGTHS`, with row numbers by step and micro-batch."""
    rows = TokenRows(tiny.make_row(range(2, 2 + length), prompt_tokens=1) for length in LENGTHS)
    train = TokenSet(
        rows=rows, summary=SUMMARY, whole_lengths=LENGTHS, places=tuple(range(len(LENGTHS))),
        refused=frozenset(), num_given=len(LENGTHS),
    )  # fmt: skip
    return BatchPlan(train=train, row_numbers=plan, device=tiny.CPU)


def tokens(step):
    return [batch.num_tokens for batch in step]


def test_time_is_measured_at_the_step_with_the_median_number_of_tokens():
    # 3 + 5, 11 + 9, 7 + 4 tokens
    assert tokens(feed_of([[[0], [1]], [[4, 3]], [[2], [5]]]).typical_step()) == [7, 4]
    # 20, 8, 16 and 11 tokens: of 11 and 16 the smaller
    assert tokens(feed_of([[[4, 3]], [[0, 1]], [[2, 3]], [[2, 5]]]).typical_step()) == [11]


def test_memory_is_measured_at_the_step_with_the_largest_micro_batch():
    # 20 tokens in two micro-batches, and 16 in one
    assert tokens(feed_of([[[4], [3]], [[2, 3]]]).largest_step()) == [16]
