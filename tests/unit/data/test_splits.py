import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorastudy.data.formats import detect
from lorastudy.data.load import to_examples
from lorastudy.data.sources import Row
from lorastudy.data.splits import (
    content_hash,
    num_duplicates,
    overlap,
    position,
    prompt_groups,
    prompt_hash,
    split_by_content,
)


def examples(pairs):
    rows = [Row(values={"prompt": p, "completion": c}, where="f") for p, c in pairs]
    return to_examples(rows, detect(rows)) if rows else []


def hash_of(values):
    row = Row(values=values, where="f")
    return content_hash(row, detect([row]))


def prompts(part):
    return [example.row.values["prompt"] for example in part]


PAIRS = st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=40)


@given(PAIRS, st.floats(0.05, 0.95), st.data())
def test_a_rows_side_never_depends_on_other_rows(pairs, fraction, data):
    whole = split_by_content(examples(pairs), eval_fraction=fraction)
    kept = data.draw(st.permutations(pairs))[: len(pairs) // 2]
    part = split_by_content(examples(kept), eval_fraction=fraction)
    assert {e.content_hash for e in part.train} <= {e.content_hash for e in whole.train}
    assert {e.content_hash for e in part.held_out} <= {e.content_hash for e in whole.held_out}


@given(PAIRS, st.floats(0.05, 0.95))
def test_nothing_is_lost_and_nothing_is_on_both_sides(pairs, fraction):
    given_rows = examples(pairs)
    split = split_by_content(given_rows, eval_fraction=fraction)
    assert len(split.train) + len(split.held_out) == len(given_rows)
    assert overlap(split.train, split.held_out) == 0


def test_case_white_space_and_unicode_form_make_no_other_content():
    twins = examples([("What  is\nÉ?", "A"), ("what is e\u0301?", " a\t")])
    assert num_duplicates(twins) == 1
    assert len({content_hash(e.row, e.format) for e in twins}) == 1


def test_the_border_between_prompt_and_answer_counts():
    assert num_duplicates(examples([("a b", "c"), ("a", "b c")])) == 0


def test_the_format_makes_no_other_content():
    # SHA-256 of "say hi\x1fhi", the texts in order with a unit separator
    expected = hashlib.sha256(b"say hi\x1fhi").hexdigest()
    turns = [{"role": "user", "content": "Say hi"}, {"role": "assistant", "content": "hi"}]
    for values in (
        {"instruction": "Say hi", "input": "", "output": "hi"},
        {"question": "Say hi", "answer": "hi"},
        {"messages": turns},
    ):
        assert hash_of(values) == expected


def test_the_share_is_met_within_four_standard_errors():
    # 4 * sqrt(4000 * 0.1 * 0.9) = 75.9
    split = split_by_content(examples([(str(i), "x") for i in range(4000)]), eval_fraction=0.1)
    assert abs(len(split.held_out) - 400) <= 75


def test_a_larger_fraction_keeps_what_was_held_out():
    rows = examples([(str(i), "x") for i in range(200)])
    small, large = (split_by_content(rows, eval_fraction=f).held_out for f in (0.1, 0.3))
    assert set(prompts(small)) < set(prompts(large))


def test_another_salt_is_another_split():
    rows = examples([(str(i), "x") for i in range(200)])
    one, two = (split_by_content(rows, eval_fraction=0.5, salt=salt).held_out for salt in ("", "other"))
    assert prompts(one) != prompts(two)


def test_position_is_the_first_48_bits_of_the_hash():
    digest = hashlib.sha256(b"split:\nabc").hexdigest()
    assert position("abc", purpose="split:") == pytest.approx(int(digest[:12], 16) / 2**48, abs=0)


def test_overlap_counts_held_out_rows():
    assert overlap(examples([("a", "x"), ("b", "x")]), examples([("A", "X"), ("a", "x"), ("c", "x")])) == 2


def prompt_of(values):
    row = Row(values=values, where="f")
    return prompt_hash(row, detect([row]))


def test_a_prompt_is_what_stands_before_the_first_answer_in_every_format():
    # SHA-256 of "be brief\x1fsay hi" and of "say hi", as `content_hash` but without the answers
    system, user = {"role": "system", "content": "Be brief"}, {"role": "user", "content": "Say  HI "}
    answers = [{"role": "assistant", "content": text} for text in ("hi", "bye")]
    assert (
        prompt_of({"messages": [system, user, answers[0]]})
        == hashlib.sha256(b"be brief\x1fsay hi").hexdigest()
    )
    expected = hashlib.sha256(b"say hi").hexdigest()
    for values in (
        {"instruction": "Say hi", "input": "", "output": "bye"},
        {"question": "say hi", "answer": "hello"},
        {"messages": [user, answers[0], {"role": "user", "content": "Leave"}, answers[1]]},
    ):
        assert prompt_of(values) == expected


def test_plain_text_and_rows_that_ask_nothing_have_their_content_for_a_prompt():
    for values in ({"text": "Say hi"}, {"prompt": " ", "completion": "hi"}):
        assert prompt_of(values) == hash_of(values)


def test_groups_number_the_prompts_by_first_appearance():
    rows = examples([("a", "x"), ("b", "x"), ("A ", "y"), ("c", "x")])
    assert prompt_groups(rows) == (0, 1, 0, 2)
    assert prompt_groups(rows[:2]) is None
