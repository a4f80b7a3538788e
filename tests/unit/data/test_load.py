import hashlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorastudy.data import near_copies as near_copies_module
from lorastudy.data.load import (
    MIN_PROMPTS,
    load_examples,
    num_duplicates,
    position,
    split_rows,
    to_example,
    train_and_eval,
)
from lorastudy.data.near_copies import near_copies
from lorastudy.data.row_index import ReadRow, RowKeys, index_rows, read_row, row_hashes
from lorastudy.data.sources import Row, dataset_fingerprint
from lorastudy.data.token_sets import prompt_groups
from lorastudy.errors import DataError
from lorastudy.suite.settings import Settings
from tests.formatted import detect


def pairs(*numbers):
    return [{"prompt": f"q{i}", "completion": f"a{i}"} for i in numbers]


def settings(path, **values):
    return Settings(dataset_path=path, **values)


def id_of(example):
    return example.content_hash


def prompts(part):
    return [example.row.values["prompt"] for example in part]


def test_load_examples_takes_the_first_rows(write):
    fmt, examples = load_examples(write("a.jsonl", pairs(*range(5))), max_samples=2)
    assert fmt.name == "prompt_completion"
    assert prompts(examples) == ["q0", "q1"]
    assert [segment.text for segment in examples[1].segments] == ["q1", "a1"]


def test_load_examples_names_the_file(write):
    path = write("a.jsonl", [{"foo": "x"}])
    with pytest.raises(DataError, match=rf"^{path}: columns foo: not a known format"):
        load_examples(path)


def test_without_a_held_out_file_a_fraction_is_held_out(write):
    path = write("a.jsonl", [*pairs(*range(100)), *pairs(0, 1)])
    data = train_and_eval(settings(path, eval_fraction=0.2))
    assert len(data.train) + len(data.held_out) == 102
    assert 8 <= len(data.held_out) <= 32  # 20 plus or minus 3 standard deviations of 4
    trained = [row.content_hash for row in data.train]
    assert (
        data.num_duplicates == len(trained) - len(set(trained)) <= 2
    )  # a held-out repetition is no training row
    assert (data.num_leaked, data.test, data.forgetting) == ({"eval": 0}, None, None)


def test_limits_on_the_number_of_rows(write):
    path, other = write("a.jsonl", pairs(*range(100))), write("b.txt", "one\n\ntwo\n\nthree\n")
    limited = settings(path, max_train_samples=50, max_eval_samples=2, forgetting_dataset_path=other)
    data = train_and_eval(limited)
    everything = train_and_eval(settings(path))
    assert prompts(data.train) == [p for p in prompts(everything.train) if int(p[1:]) < 50]
    assert prompts(data.held_out) == prompts(everything.held_out)[:2]
    assert data.forgetting is not None
    assert [example.row.values["text"] for example in data.forgetting] == ["one", "two"]


def test_rows_that_are_in_both_files_are_counted(write):
    train = write("train.jsonl", pairs(*range(10)))
    held_out = write("eval.jsonl", [{"prompt": "Q3", "completion": " a3"}, *pairs(4, 20)])
    data = train_and_eval(settings(train, eval_dataset_path=held_out))
    assert (len(data.train), len(data.held_out), data.num_leaked) == (10, 3, {"eval": 2})


def test_a_test_part_takes_rows_from_training_and_leaves_the_held_out_ones(write):
    path = write("a.jsonl", pairs(*range(100)))
    two, three = (train_and_eval(settings(path, test_fraction=share)) for share in (None, 0.2))
    assert two.test is None
    assert three.held_out.read() == two.held_out.read()
    assert sorted(map(id_of, [*three.train, *three.test])) == sorted(map(id_of, two.train))
    assert 8 <= len(three.test) <= 32  # 20 plus or minus 3 standard deviations of 4
    assert three.num_leaked == {"eval": 0, "test": 0}


def test_a_share_of_the_held_out_file_becomes_test_rows_even_if_that_file_was_cut_off_by_content(write):
    rows = pairs(*range(400))
    whole = train_and_eval(settings(write("all.jsonl", rows)))
    held_out = write("eval.jsonl", [dict(example.row.values) for example in whole.held_out])
    data = train_and_eval(
        settings(write("train.jsonl", pairs(1000)), eval_dataset_path=held_out, test_fraction=0.5)
    )
    assert {*map(id_of, data.held_out), *map(id_of, data.test)} == {*map(id_of, whole.held_out)}
    assert 0.3 < len(data.test) / len(whole.held_out) < 0.7  # about 40 rows, 4 standard deviations of .08
    assert not {*map(id_of, data.held_out)} & {*map(id_of, data.test)}


def test_test_rows_in_training_or_among_the_rows_that_choose_are_counted(write):
    train, held_out = write("train.jsonl", pairs(*range(10))), write("eval.jsonl", pairs(20, 21))
    test = write("test.jsonl", [{"prompt": "Q3", "completion": " a3"}, *pairs(21, 30, 31)])
    data = train_and_eval(settings(train, eval_dataset_path=held_out, test_dataset_path=test))
    assert prompts(data.test) == ["Q3", "q21", "q30", "q31"]
    assert data.num_leaked == {"eval": 0, "test": 2}  # q3 is trained on, q21 chooses


def test_an_eval_file_too_small_to_share_is_refused(write):
    train, held_out = write("train.jsonl", pairs(*range(10))), write("eval.jsonl", pairs(20))
    with pytest.raises(
        DataError, match=r"eval\.jsonl: taking 0\.5 of its rows as test rows left one side empty"
    ):
        train_and_eval(settings(train, eval_dataset_path=held_out, test_fraction=0.5))


def test_too_few_rows_to_hold_any_out(write):
    with pytest.raises(DataError, match=r"holding out 0\.1 of 1 rows left one side empty"):
        train_and_eval(settings(write("a.jsonl", pairs(1))))


def test_fingerprint_follows_the_bytes_and_not_the_path(write):
    one, two = write("a.txt", "abc"), write("b.txt", "abc")
    assert dataset_fingerprint(one) == dataset_fingerprint(two) == hashlib.sha256(b"abc").hexdigest()
    assert dataset_fingerprint(write("c.txt", "abd")) != dataset_fingerprint(one)


def test_fingerprint_of_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        dataset_fingerprint(str(tmp_path / "a.json"))


def test_fingerprint_of_a_lab_set(monkeypatch):
    from lorastudy import lab

    monkeypatch.setattr(lab, "fingerprint", lambda name: f"recipe of {name}")
    assert dataset_fingerprint("lab:facts") == "recipe of facts"


def test_of_many_rows_those_with_the_lowest_hashes_of_prompts_are_compared(write, monkeypatch):
    study = train_and_eval(settings(write("a.jsonl", pairs(*range(60))), eval_fraction=0.4))
    monkeypatch.setattr(near_copies_module, "MAX_ROWS", 7)
    places = {
        number: position(key.hex(), purpose="near copies")
        for number, key in zip(study.train.numbers, study.train.hashes("prompts"), strict=True)
    }
    assert near_copies_module._sample(study.train) == sorted(sorted(places, key=places.__getitem__)[:7])
    found = near_copies(study)["eval"]
    assert (found.num_compared, found.num_compared_with, found.num_known) == (7, 7, len(study.train))
    assert len(study.train) > 7


def test_rows_are_compared_once_for_all_packs_until_a_file_changes(write, monkeypatch):
    monkeypatch.setattr(
        "lorastudy.data.sources._TICK_NANOSECONDS", 0
    )  # this file has its clock tick for itself
    path, num_texts = write("a.jsonl", pairs(*range(60))), []
    count = near_copies_module.num_near_copies
    monkeypatch.setattr(
        near_copies_module,
        "num_near_copies",
        lambda texts, among: (num_texts.append(len(texts) + len(among)), count(texts, among))[1],
    )
    assert near_copies(train_and_eval(settings(path))) == near_copies(train_and_eval(settings(path)))
    assert num_texts == [60]
    write("a.jsonl", pairs(*range(61)))
    near_copies(train_and_eval(settings(path)))
    assert num_texts == [60, 61]


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
