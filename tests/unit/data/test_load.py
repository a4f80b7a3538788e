import hashlib

import pytest

from lorastudy.data.fingerprint import dataset_fingerprint
from lorastudy.data.load import load_examples, train_and_eval
from lorastudy.errors import DataError
from lorastudy.spec.settings import Settings


def pairs(*numbers):
    return [{"prompt": f"q{i}", "completion": f"a{i}"} for i in numbers]


def settings(path, **values):
    return Settings(dataset_path=path, **values)


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
    assert (data.num_duplicates, data.num_leaked, data.forgetting) == (2, 0, None)


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
    assert (len(data.train), len(data.held_out), data.num_leaked) == (10, 3, 2)


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
