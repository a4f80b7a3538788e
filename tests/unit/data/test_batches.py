import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorastudy.data.batches import micro_batches, num_steps, row_order, steps_of, usable_order
from lorastudy.spec.settings import Settings


@given(st.integers(1, 30), st.integers(0, 9), st.integers(0, 100))
def test_every_epoch_sees_every_row_once(num_rows, data_seed, needed):
    order = row_order(num_rows, data_seed=data_seed, num_rows_needed=needed)
    assert len(order) == needed
    for start in range(0, needed - num_rows + 1, num_rows):
        assert sorted(order[start : start + num_rows]) == list(range(num_rows))


def test_epochs_and_seeds_differ_and_more_rows_continue_the_same_order():
    order = row_order(50, data_seed=0, num_rows_needed=100)
    assert order[:50] != order[50:]
    assert order != row_order(50, data_seed=1, num_rows_needed=100)
    assert row_order(50, data_seed=0, num_rows_needed=170)[:100] == order


def test_the_order_is_the_same_on_every_machine_and_version():
    # python -c "from hashlib import sha256; print(sorted(range(6), key=lambda i: sha256(f'0:0:{i}'.encode()).digest()))"
    assert row_order(6, data_seed=0, num_rows_needed=6) == [4, 1, 2, 3, 0, 5]


def test_micro_batches_follow_the_order_across_the_end_of_an_epoch():
    order = row_order(5, data_seed=3, num_rows_needed=12)
    assert micro_batches(5, data_seed=3, steps=3, batch_size=2, accumulation=2) == [
        [order[0:2], order[2:4]],
        [order[4:6], order[6:8]],
        [order[8:10], order[10:12]],
    ]


@pytest.mark.parametrize(
    ("num_rows", "epochs", "batch_size", "accumulation", "steps"),
    [
        (10, 1, 4, 1, 3),  # 10 / 4 = 2.5
        (10, 2, 4, 1, 5),
        (16, 3, 4, 2, 6),
        (30, 0.1, 1, 1, 3),  # 30 * 0.1 = 3.0000000000000004 in floating point
        (3, 0.01, 4, 4, 1),
    ],
)
def test_num_steps(num_rows, epochs, batch_size, accumulation, steps):
    assert num_steps(num_rows, epochs=epochs, batch_size=batch_size, accumulation=accumulation) == steps


def test_refused_rows_are_passed_over_and_the_others_keep_their_order():
    whole = row_order(20, data_seed=1, num_rows_needed=200)
    refused = {3, 7, *range(10, 18)}
    order = usable_order(20, data_seed=1, num_rows_needed=45, refused=refused)
    assert order == [row for row in whole if row not in refused][:45]
    assert order[:9] == usable_order(20, data_seed=1, num_rows_needed=9, refused=refused)


def test_a_plan_counts_the_steps_that_training_takes():
    """50 rows, 1.1 epochs, batches of one: 55 steps, though 50 * 1.1 is a little more than 55 in binary."""
    settings = Settings(num_train_epochs=1.1, per_device_train_batch_size=1, gradient_accumulation_steps=1)
    assert 50 * 1.1 > 55
    assert steps_of(settings, num_rows=50) == 55
    assert steps_of(settings.model_copy(update={"max_steps": 7}), num_rows=50) == 7
