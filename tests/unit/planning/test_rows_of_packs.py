"""The largest micro-batch of a pack whose arms have rows of their own."""

from lorastudy.planning.rows import rows_of_answer


def batch(*lengths: int) -> dict[str, object]:
    return {"row_lengths": list(lengths), "num_labels": 1}


ANSWER = {
    "orders": [batch(9, 9) | {"mean_tokens_per_step": 10.0}, batch(2, 8) | {"mean_tokens_per_step": 6.0}],
    "rounds": [[batch(9, 9), batch(1, 1)], [batch(5, 6), batch(5, 5)], [batch(1, 1), batch(2, 8)]],
    "num_steps": 3,
}


def test_it_is_the_largest_sum_over_the_arms_of_one_round() -> None:
    """With two arms of order 4 and one of order 7: 2 * 18 + 2, 2 * 11 + 10, 2 * 2 + 10. With one and three: 18 + 6, 11 + 30, 2 + 30."""
    rows = rows_of_answer(ANSWER, data_seeds=(4, 7), own={4, 7})
    assert {seed: own.num_tokens for seed, own in rows.side_by_side({4: 2, 7: 1}).items()} == {4: 18, 7: 2}
    assert {seed: own.num_tokens for seed, own in rows.side_by_side({4: 1, 7: 3}).items()} == {4: 11, 7: 10}


def test_an_arm_alone_has_the_largest_one_of_all_orders() -> None:
    rows = rows_of_answer(ANSWER, data_seeds=(4, 7), own={7})
    assert rows.batch.row_lengths == (9, 9)
    assert rows.mean_tokens_per_step == 6.0
