import hashlib

import pytest

from lorastudy.data import near_copies as near_copies_module
from lorastudy.data.load import load_examples, train_and_eval
from lorastudy.data.near_copies import near_copies
from lorastudy.data.sources import dataset_fingerprint
from lorastudy.data.splits import position
from lorastudy.errors import DataError
from lorastudy.suite.settings import Settings


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
    assert (data.num_duplicates, data.num_leaked, data.test, data.forgetting) == (2, {"eval": 0}, None, None)


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
