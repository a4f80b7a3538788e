from hypothesis import given
from hypothesis import strategies as st

import tiny
from lorastudy.data.tokenise import TokenRow
from lorastudy.engine.batch import Bucket, assemble


@st.composite
def token_rows(draw):
    length = draw(st.integers(2, 12))
    ids = draw(st.lists(st.integers(2, 99), min_size=length, max_size=length))
    trained = draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1))
    labels = (
        -100,
        *(token if is_trained else -100 for token, is_trained in zip(ids[1:], trained, strict=True)),
    )
    return TokenRow(input_ids=tuple(ids), labels=labels, prompt_ids=(), prompt_text="", reference="")


def has_labels(rows):
    return any(row.num_completion_tokens for row in rows)


@given(st.lists(token_rows(), min_size=1, max_size=8).filter(has_labels))
def test_every_label_is_found_once_behind_the_token_that_predicts_it(rows):
    batch = assemble(rows, device=tiny.CPU)
    ids, positions = batch.input_ids_N.tolist(), batch.position_ids_N.tolist()
    found = {number: [] for number in range(len(rows))}
    for index, target, number in zip(
        batch.label_index_M.tolist(), batch.targets_M.tolist(), batch.label_row_M.tolist(), strict=True
    ):
        place = positions[index]
        assert ids[index] == rows[number].input_ids[place]
        found[number].append((place + 1, target))
    for number, row in enumerate(rows):
        assert found[number] == [(place, label) for place, label in enumerate(row.labels) if label != -100]
    assert batch.num_completion_tokens == sum(row.num_completion_tokens for row in rows)


@given(st.lists(token_rows(), min_size=1, max_size=8).filter(has_labels))
def test_buckets_are_runs_of_equal_length_that_hold_every_token_once(rows):
    batch = assemble(rows, device=tiny.CPU)
    lengths = [bucket.length for bucket in batch.buckets for _ in range(bucket.num_rows)]
    assert lengths == sorted(len(row.input_ids) for row in rows)
    assert len({bucket.length for bucket in batch.buckets}) == len(batch.buckets)
    assert sum(bucket.num_tokens for bucket in batch.buckets) == batch.num_tokens == sum(lengths)
    assert batch.position_ids_N.tolist() == [place for length in lengths for place in range(length)]
    remaining = [row.input_ids for row in rows]
    start = 0
    for length in lengths:
        remaining.remove(tuple(batch.input_ids_N[start : start + length].tolist()))
        start += length


def test_rows_keep_the_callers_numbers():
    rows = [tiny.make_row([5, 6, 7, 8], prompt_tokens=2), tiny.make_row([9, 10], prompt_tokens=1)]
    batch = assemble(rows, device=tiny.CPU)
    assert batch.input_ids_N.tolist() == [9, 10, 5, 6, 7, 8]
    assert batch.targets_M.tolist() == [10, 7, 8]
    assert batch.label_index_M.tolist() == [0, 3, 4]
    assert batch.label_row_M.tolist() == [1, 0, 0]
    assert batch.buckets == (Bucket(num_rows=1, length=2), Bucket(num_rows=1, length=4))
