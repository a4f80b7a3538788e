"""The metrics that a suite adds: where they come from, how they are named, and what is refused, with its place."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from lorastudy.errors import StudyError, SuiteFileError
from lorastudy.suite.metrics import BUILT_IN, load_function, parameters_of
from lorastudy.suite.own_code import imported_files
from lorastudy.suite.question import Question
from lorastudy.suite.suite import Suite, expand
from lorastudy.suite.suite_file import load_suite, suite_yaml

Write = Callable[[str], Path]

OWN = """\
def right(answer, reference):
    return float(answer == reference)

def length(prompt, answer, reference, row):
    return len(answer)

length.higher_is_better = False
length.name = "answer_length"
length.unit = "letters"
length.max_seconds = 2

def takes_all(**given):
    return len(given)

def wants_score(answer, refrence):
    return 0

no_function = 1
"""


@pytest.fixture
def own(write: Write) -> Write:
    """A suite file, with the file of metrics beside it."""

    def written(text: str) -> Path:
        path = write(text)
        (path.parent / "own.py").write_text(OWN, encoding="utf-8")
        return path

    return written


def told(path: Path) -> str:
    with pytest.raises(SuiteFileError) as error:
        load_suite(path)
    return str(error.value)


def test_a_metric_of_the_package_has_its_name_and_a_function_its_files_hash(own: Write) -> None:
    suite = load_suite(own("metrics: [exact_match, token_f1, own.py:length]\nexperiments: [{}]"))
    built_in, length = suite.metrics  # exact match is measured anyway
    assert built_in == BUILT_IN["token_f1"]
    assert (length.name, length.unit, length.higher_is_better, length.max_seconds) == (
        "answer_length", "letters", False, 2.0,
    )  # fmt: skip
    assert length.source_sha256 is not None
    assert length.key == f"answer_length@{length.source_sha256[:12]}"
    assert suite.primary_metric == "loss"
    assert load_function(length)(prompt="", answer="four", reference="", row={}) == 4
    assert parameters_of(load_function(length)) == ("prompt", "answer", "reference", "row")


@pytest.mark.parametrize("primary", ["right", "own.py:right"])
def test_a_primary_metric_may_be_a_function_by_name_or_by_file(own: Write, primary: str) -> None:
    suite = load_suite(own(f"metrics: [own.py:right]\nprimary_metric: {primary}\nexperiments: [{{}}]"))
    assert suite.primary_metric == suite.metrics[0].key
    assert suite.question.primary_name == "right"
    unlisted = load_suite(own("primary_metric: own.py:right\nexperiments: [{}]"))
    assert (unlisted.metrics, unlisted.primary_metric) == (suite.metrics, suite.primary_metric)


def test_the_hash_covers_what_the_file_imports_from_its_folder(
    own: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own("metrics: [own.py:right]\nexperiments: [{}]")
    folder = path.parent.resolve()
    alone = load_suite(path).metrics[0].source_sha256
    assert alone == hashlib.sha256((folder / "own.py").read_bytes()).hexdigest()
    (folder / "own.py").write_text("import json\nfrom own_help_hashed import part\n" + OWN, encoding="utf-8")
    (folder / "own_help_hashed").mkdir()
    (folder / "own_help_hashed" / "__init__.py").write_text("from . import part\n", encoding="utf-8")
    (folder / "own_help_hashed" / "part.py").write_text("WEIGHT = 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    (metric,) = load_suite(path).metrics
    assert [file.relative_to(folder).as_posix() for file in imported_files(folder / "own.py")] == [
        "own_help_hashed/__init__.py",
        "own_help_hashed/part.py",
    ]
    assert (
        load_suite(path).metrics[0] == metric
    )  # the second time nothing is loaded, and the hash is the same
    assert load_function(metric)
    (folder / "own_help_hashed" / "part.py").write_text("WEIGHT = 2\n", encoding="utf-8")
    assert load_suite(path).metrics[0].key != metric.key
    with pytest.raises(StudyError, match="has changed since the suite was read"):
        load_function(metric)


def test_a_changed_file_is_another_metric(own: Write) -> None:
    path = own("metrics: [own.py:right]\nexperiments: [{}]")
    before = load_suite(path).metrics[0]
    (path.parent / "own.py").write_text(OWN + "# a comment\n", encoding="utf-8")
    assert load_suite(path).metrics[0].key != before.key
    with pytest.raises(StudyError, match="has changed since the suite was read"):
        load_function(before)
    (path.parent / "own.py").unlink()
    with pytest.raises(StudyError, match="is not there any more"):
        load_function(before)


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        ("tokn_f1", "not 'tokn_f1' (did you mean token_f1?)"),
        ("onw.py:right", "there is no file 'onw.py' (did you mean own.py?)"),
        ("own.py:rigth", "own.py has no function rigth (did you mean right?)"),
        ("own.py:xyz", "has no function xyz; it has right, length, takes_all, wants_score"),
        ("own.py:no_function", "no_function is not a function"),
        ("own.py:wants_score", "the parameter 'refrence' cannot be given (did you mean reference?)"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named_with_its_place(own: Write, entry: str, cause: str) -> None:
    path = own(f"metrics: [token_f1, {entry}]\nexperiments: [{{}}]")
    assert f"{path}:1:21: metrics[1]: " in told(path)
    assert cause in told(path)


def test_a_file_that_cannot_be_imported_is_named_with_its_line(own: Write) -> None:
    path = own("metrics:\n  - bad.py:metric\nexperiments: [{}]")
    (path.parent / "bad.py").write_text("import math\nmath.nothing\n", encoding="utf-8")
    assert f"{path}:2:5: metrics[0]: {path.parent / 'bad.py'}:2 cannot be loaded: AttributeError" in told(
        path
    )


@pytest.mark.parametrize(
    ("attribute", "cause"),
    [
        ("name = 'loss'", "loss is the name of a metric of the package"),
        ("name = '7'", "a name begins with a letter"),
        ("higher_is_better = 'yes'", "it must be True or False"),
        ("unit = 3", "it must be a text"),
        ("max_seconds = 0", "it must be a number above 0"),
    ],
)
def test_an_attribute_that_is_none_is_refused(own: Write, attribute: str, cause: str) -> None:
    path = own("metrics: [odd.py:odd]\nexperiments: [{}]")
    (path.parent / "odd.py").write_text(
        f"def odd(answer):\n    return 1\nodd.{attribute}\n", encoding="utf-8"
    )
    assert cause in told(path)


def test_two_metrics_of_one_name_and_a_metric_of_no_answers_are_refused(own: Write) -> None:
    assert "the name 'token_f1' is taken" in told(own("metrics: [token_f1, token_f1]\nexperiments: [{}]"))
    asks_nothing = "metrics: [rouge_l]\nmax_generation_samples: 0\nexperiments: [{}]"
    assert "1:10: metrics: rouge_l is not measured where max_generation_samples is 0" in told(
        own(asks_nothing)
    )
    likelihood = own("metrics: [bits_per_byte]\nmax_generation_samples: 0\nexperiments: [{}]")
    assert load_suite(likelihood).metrics == (BUILT_IN["bits_per_byte"],)


def test_metrics_are_no_part_of_identity_and_old_questions_keep_their_ids(own: Write) -> None:
    plain, added = (
        load_suite(own(f"{metrics}experiments: [{{}}]")) for metrics in ("", "metrics: [token_f1]\n")
    )

    def ids(suite: Suite) -> list[str]:
        return [e.id for e in expand(suite, fingerprint_dataset=str, fingerprint_base=str)]

    assert ids(plain) == ids(added)
    assert "metrics" not in plain.question.to_json()
    assert "metrics" not in plain.to_json()
    assert Question.from_json(added.question.to_json()) == added.question
    assert Suite.from_json(added.to_json()).metrics == added.metrics


def test_a_written_suite_has_the_same_metrics(own: Write, tmp_path: Path) -> None:
    suite = load_suite(own("metrics: [token_f1, own.py:right]\nprimary_metric: right\nexperiments: [{}]"))
    copy = tmp_path / "elsewhere" / "copy.yaml"
    copy.parent.mkdir()
    copy.write_text(suite_yaml(suite), encoding="utf-8")
    again = load_suite(copy)
    assert [metric.key for metric in again.metrics] == [metric.key for metric in suite.metrics]
    assert again.primary_metric == suite.primary_metric
