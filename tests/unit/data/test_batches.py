from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.trainer_pt_utils import get_length_grouped_indices

from lorastudy.data.batches import (
    MAX_GROUPED_STEPS,
    PIECES_APART,
    grouped_by_length,
    micro_batches,
    num_steps,
    row_order,
    rows_in_order,
    rows_per_group,
    steps_of,
    usable_order,
)
from lorastudy.suite.settings import Settings


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
    assert micro_batches(order, batch_size=2, accumulation=2) == [
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


NUMBERS_OF_PIECES = st.lists(st.integers(0, 5), min_size=1, max_size=30).filter(any)


def in_order(numbers, *, data_seed, needed):
    """Rows of texts that have so many pieces; one without any is refused."""
    places = [place for place, number in enumerate(numbers) for _ in range(number)]
    refused = {place for place, number in enumerate(numbers) if number == 0}
    rows = rows_in_order(
        len(numbers), data_seed=data_seed, num_rows_needed=needed, refused=refused, places=places
    )
    return rows, places


@given(NUMBERS_OF_PIECES, st.integers(0, 9), st.integers(0, 200))
def test_every_epoch_sees_every_piece_once(numbers, data_seed, needed):
    rows, places = in_order(numbers, data_seed=data_seed, needed=needed)
    assert len(rows) == needed
    for start in range(0, needed - len(places) + 1, len(places)):
        assert sorted(rows[start : start + len(places)]) == list(range(len(places)))


@given(NUMBERS_OF_PIECES, st.integers(0, 9), st.integers(1, 100), st.integers(1, 100))
def test_more_rows_continue_the_same_order_of_pieces(numbers, data_seed, few, more):
    rows, _ = in_order(numbers, data_seed=data_seed, needed=few + more)
    assert in_order(numbers, data_seed=data_seed, needed=few)[0] == rows[:few]


@given(
    st.lists(st.integers(0, 1), min_size=1, max_size=30).filter(any), st.integers(0, 9), st.integers(0, 99)
)
def test_texts_of_one_piece_come_as_any_rows(numbers, data_seed, needed):
    rows, places = in_order(numbers, data_seed=data_seed, needed=needed)
    refused = {place for place, number in enumerate(numbers) if number == 0}
    expected = usable_order(len(numbers), data_seed=data_seed, num_rows_needed=needed, refused=refused)
    assert [places[row] for row in rows] == expected


def test_pieces_are_strewn_and_which_comes_first_is_drawn():
    numbers = [8] * 2000
    rows, places = in_order(numbers, data_seed=0, needed=16000)
    texts = [places[row] for row in rows]
    once = dict.fromkeys(texts)  # in the order in which they come first
    assert list(once) == row_order(2000, data_seed=0, num_rows_needed=2000)
    first_pieces = [next(row for row in rows if places[row] == text) % 8 for text in list(once)[:200]]
    assert all(10 <= first_pieces.count(piece) <= 45 for piece in range(8))  # 25, give or take 4.7
    neighbours = sum(one == other for one, other in pairwise(texts))
    # Of 7 of 8 rows the next one is of the same text with a probability of about 7 / (8 * PIECES_APART).
    assert neighbours < 4 * 16000 / PIECES_APART


@pytest.mark.parametrize(("num_rows", "rows_per_step"), [(100, 4), (1000, 4), (30, 8), (403, 7)])
def test_rows_by_length_are_those_of_transformers_but_for_the_longest_row(
    monkeypatch, num_rows, rows_per_step
):
    """transformers swaps the longest row of all with the first one."""
    lengths = [(37 * row) % 101 for row in range(num_rows)]
    order = row_order(num_rows, data_seed=0, num_rows_needed=num_rows)
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: torch.tensor(order))
    theirs = get_length_grouped_indices(lengths, rows_per_step)
    size = rows_per_group(num_rows, rows_per_step=rows_per_step)
    assert size <= MAX_GROUPED_STEPS * rows_per_step
    whole = num_rows // size * size
    mine = grouped_by_length(order[:whole], num_tokens=lengths.__getitem__, rows_per_group=size)
    swapped = [number for number in range(whole) if mine[number] != theirs[number]]
    assert len(swapped) <= 2
    assert sorted(mine) == sorted(order[:whole])
    assert lengths[theirs[0]] == max(lengths)
