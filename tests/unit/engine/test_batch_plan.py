"""Which steps of a pack are measured before it trains."""

import tiny
from lorastudy.data.tokenise import TokenRows, TokenSet
from lorastudy.engine.batch import BatchPlan, PackBatches, PlannedRows
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


def pack_of(plans, arms):
    """A pack with a plan for each order; `arms` are (name, plan, steps)."""
    return PackBatches(
        plans=tuple(map(feed_of, plans)),
        arms=tuple(PlannedRows(experiment_id=name, plan=plan, num_steps=steps) for name, plan, steps in arms),
        device=tiny.CPU,
    )


def test_arms_of_several_orders_get_their_own_rows_until_their_steps_are_taken():
    """The first order has two micro-batches a step, the second has one; `b` takes a single step."""
    orders = [[[[0], [1]], [[2], [3]]], [[[4, 5]], [[0, 2]]]]
    pack = pack_of(orders, [("a", 0, 2), ("b", 1, 1), ("c", 0, 2)])
    steps = list(pack.steps())
    found = [
        [{name: batch.num_tokens for name, batch in each.by_arm.items()} for each in step] for step in steps
    ]
    assert found == [[{"a": 3, "b": 15, "c": 3}, {"a": 5, "c": 5}], [{"a": 7, "c": 7}, {"a": 9, "c": 9}]]
    assert steps[0][0].by_arm["a"] is steps[0][0].by_arm["c"]  # they share products
    (last,) = pack.steps(start=1)
    assert [batch.of("a", device=tiny.CPU).input_ids_N.tolist() for batch in last] == [
        batch.of("a", device=tiny.CPU).input_ids_N.tolist() for batch in steps[1]
    ]
    assert steps[1][0].of("b", device=tiny.CPU) is None


def test_arms_of_one_order_see_the_same_batches():
    pack = pack_of([[[[0], [1]], [[2], [3]]]], [("a", 0, 2), ("b", 0, 1)])
    assert [tokens(step) for step in pack.steps()] == [[3, 5], [7, 9]]


def test_a_pack_is_measured_at_the_largest_micro_batch_of_all_orders():
    pack = pack_of([[[[0], [1]], [[2], [3]]], [[[4, 5]], [[0, 2]]]], [("a", 0, 2), ("b", 1, 2)])
    assert tokens(pack.largest_step()) == [15]
    assert tokens(pack.typical_step()) == [3, 5]
