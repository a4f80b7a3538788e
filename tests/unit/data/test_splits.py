import hashlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorastudy.data.load import to_example
from lorastudy.data.row_index import ReadRow, RowKeys, index_rows, read_row, row_hashes
from lorastudy.data.sources import Row
from lorastudy.data.splits import MIN_PROMPTS, num_duplicates, position, split_rows
from lorastudy.data.token_sets import prompt_groups
from tests.formatted import detect


def rows_of(pairs):
    return [Row(values={"prompt": p, "completion": c}, where="f") for p, c in pairs]


def keys_of(pairs):
    rows = rows_of(pairs)
    return index_rows(rows, detect(rows)).keys if rows else RowKeys()


def hash_of(values):
    row = Row(values=values, where="f")
    return row_hashes(read_row(row, detect([row])))[0].hex()


def pairs_of(numbers, pairs):
    return [pairs[number] for number in numbers]


WORDS = st.sampled_from([f"{a}{b}" for a in "abcdef" for b in ("", " x", "  X", "y")])
PAIRS = st.lists(st.tuples(WORDS, WORDS), max_size=60)


@given(PAIRS, st.floats(0.05, 0.95), st.data())
def test_a_rows_side_never_depends_on_other_rows_while_there_are_prompts_enough(pairs, fraction, data):
    kept = data.draw(st.permutations(pairs))[: len(pairs) // 2]
    whole = split_rows(keys_of(pairs), eval_fraction=fraction)
    part = split_rows(keys_of(kept), eval_fraction=fraction)
    if whole.by == part.by:
        assert {*pairs_of(part.train, kept)} <= {*pairs_of(whole.train, pairs)}
        assert {*pairs_of(part.held_out, kept)} <= {*pairs_of(whole.held_out, pairs)}


@given(PAIRS, st.floats(0.05, 0.6), st.floats(0.0, 0.35))
def test_nothing_is_lost_and_no_prompt_is_on_two_sides(pairs, eval_fraction, test_fraction):
    keys = keys_of(pairs)
    split = split_rows(keys, eval_fraction=eval_fraction, test_fraction=test_fraction)
    sides = (split.train, split.held_out, split.test)
    assert sorted(number for side in sides for number in side) == list(range(len(pairs)))
    of = keys.prompts if split.by == "prompt" else keys.contents
    hashes = [set(of(side)) for side in sides]
    assert sum(map(len, hashes)) == len(set.union(*hashes))


def test_a_split_by_row_is_noticed(monkeypatch):
    """A planted fault: each row is placed by its own content."""
    keys = keys_of([(f"q{prompt}", f"a{answer}") for prompt in range(20) for answer in range(5)])
    monkeypatch.setattr(type(keys), "prompt", type(keys).content)
    split = split_rows(keys, eval_fraction=0.5)
    monkeypatch.undo()
    assert {*keys.prompts(split.train)} & {*keys.prompts(split.held_out)}


@pytest.mark.parametrize(
    ("num_prompts", "num_answers", "by"),
    [(MIN_PROMPTS, 3, "prompt"), (MIN_PROMPTS - 1, 3, "row"), (MIN_PROMPTS - 1, 1, "prompt"), (1, 40, "row")],
)
def test_rows_are_split_by_themselves_only_where_prompts_are_few_and_repeat(num_prompts, num_answers, by):
    pairs = [(f"q{p}", f"a{a}") for p in range(num_prompts) for a in range(num_answers)]
    assert split_rows(keys_of(pairs), eval_fraction=0.5).by == by


def test_case_white_space_and_unicode_form_make_no_other_content():
    twins = keys_of([("What  is\nÉ?", "A"), ("what is e\u0301?", " a\t")])
    assert num_duplicates(twins) == 1
    assert len(set(twins.contents())) == len(set(twins.prompts())) == 1


def test_the_border_between_prompt_and_answer_counts():
    assert num_duplicates(keys_of([("a b", "c"), ("a", "b c")])) == 0


def test_the_format_makes_no_other_content():
    # SHA-256 of "say hi\x1fhi", the texts in order with a unit separator
    expected = hashlib.sha256(b"say hi\x1fhi").hexdigest()[:32]
    turns = [{"role": "user", "content": "Say hi"}, {"role": "assistant", "content": "hi"}]
    for values in (
        {"instruction": "Say hi", "input": "", "output": "hi"},
        {"question": "Say hi", "answer": "hi"},
        {"messages": turns},
    ):
        assert hash_of(values) == expected


def test_the_share_is_met_within_four_standard_errors():
    # 4 * sqrt(4000 * 0.1 * 0.9) = 75.9
    split = split_rows(keys_of([(str(i), "x") for i in range(4000)]), eval_fraction=0.1)
    assert abs(len(split.held_out) - 400) <= 75


def test_a_larger_fraction_keeps_what_was_held_out():
    keys = keys_of([(str(i), "x") for i in range(200)])
    small, large = (split_rows(keys, eval_fraction=f).held_out for f in (0.1, 0.3))
    assert set(small) < set(large)


def test_another_salt_is_another_split():
    keys = keys_of([(str(i), "x") for i in range(200)])
    one, two = (split_rows(keys, eval_fraction=0.5, salt=salt).held_out for salt in ("", "other"))
    assert one != two


def test_position_is_the_first_48_bits_of_the_hash():
    digest = hashlib.sha256(b"split:\nabc").hexdigest()
    assert position("abc", purpose="split:") == pytest.approx(int(digest[:12], 16) / 2**48, abs=0)


def prompt_of(values):
    row = Row(values=values, where="f")
    return row_hashes(read_row(row, detect([row])))[1].hex()


def test_a_prompt_is_what_stands_before_the_first_answer_in_every_format():
    # SHA-256 of "be brief\x1fsay hi" and of "say hi", as of the content but without the answers
    system, user = {"role": "system", "content": "Be brief"}, {"role": "user", "content": "Say  HI "}
    answers = [{"role": "assistant", "content": text} for text in ("hi", "bye")]
    assert (
        prompt_of({"messages": [system, user, answers[0]]})
        == hashlib.sha256(b"be brief\x1fsay hi").hexdigest()[:32]
    )
    expected = hashlib.sha256(b"say hi").hexdigest()[:32]
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
    rows = [
        to_example(row, detect([row])) for row in rows_of([("a", "x"), ("b", "x"), ("A ", "y"), ("c", "x")])
    ]
    assert prompt_groups(rows) == (0, 1, 0, 2)
    assert prompt_groups(rows[:2]) is None


@given(st.text(st.characters(max_codepoint=127)))
def test_the_short_way_for_ascii_is_the_long_way(text):
    long_way = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    digest = hashlib.sha256(long_way.encode()).digest()[:16]
    assert row_hashes(ReadRow(texts=(text,))) == (digest, digest)


@given(PAIRS)
def test_copies_are_counted_as_a_set_counts_them(pairs):
    keys = keys_of(pairs)
    assert num_duplicates(keys) == len(pairs) - len(set(keys.contents()))
    numbers = range(0, len(pairs), 2)
    assert num_duplicates(keys, numbers) == len(numbers) - len(set(keys.contents(numbers)))
