"""A metric of the user's own on rows in GSM8K's shape: scored, decided by, added to a finished study, and resumed."""

import json
import random
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

import tiny
from lorastudy.library import StudyResult
from lorastudy.running.study import StudyOutcome
from lorastudy.store import ExperimentTracker
from lorastudy.suite.rate_search import Design

SUITE = """\
suite_name: sums
base_model: bytes
dataset_path: sums.jsonl
quantization: fp32
max_steps: 3
max_seq_length: 200
eval_fraction: 0.2
max_eval_samples: 6
max_generation_samples: 4
max_new_tokens: 6
exact_match_pattern: "#### (.+)"
learning_rate: [1e-3, 1e-2]
seeds: [0, 1]
metrics: [{metrics}]
primary_metric: digits
experiments:
  - {{lora_rank: 2}}
"""

METRICS = '''\
"""Metrics of sums."""
import os
import pathlib
import signal


def digits(answer, reference, row):
    """How near the number of digits is to that of the result; never 0, so that two arms can differ."""
    assert reference == row["answer"]
    return 1 / (1 + abs(sum(map(str.isdigit, answer)) - len(reference.split("#### ")[1])))


def fussy(prompt, answer):
    if "apples" in prompt:
        raise ValueError("no apples")
    return len(answer)


fussy.higher_is_better = False


def fatal(answer):
    """Kills its worker, once."""
    marker = pathlib.Path("was-killed")
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return len(answer)
'''


def sums() -> list[dict[str, str]]:
    """60 rows with a question and an answer that ends with `#### <result>`."""
    draw = random.Random(0)
    rows = []
    for _ in range(60):
        one, other, what = draw.randrange(2, 90), draw.randrange(2, 90), draw.choice(["apples", "pears"])
        result = one + other
        answer = f"{one} + {other} = <<{one}+{other}={result}>>{result}\n#### {result}"
        rows.append({"question": f"Tom has {one} {what} and buys {other}. How many?", "answer": answer})
    return rows


@pytest.fixture(scope="module")
def folder(make_folder: Callable[[str], Any]) -> Any:
    """A folder in which the suite ran once, with one metric of its own and one of the package."""
    folder = make_folder("own-metric")
    tiny.save_byte_model(folder.path / "bytes")
    folder.write("sums.jsonl", "".join(json.dumps(row) + "\n" for row in sums()))
    (folder.path / "suites").mkdir()
    folder.write("suites/metrics_of_sums.py", METRICS)
    write_suite(folder, "bits_per_byte", "metrics_of_sums.py:digits")
    folder.here("lorastudy suite suites/sums.yaml")
    return folder


def write_suite(folder: Any, *metrics: str) -> None:
    folder.write("suites/sums.yaml", SUITE.format(metrics=", ".join(metrics)))


def results(folder: Any) -> list[Any]:
    with ExperimentTracker(folder.path / "results/experiments.db") as tracker:
        return tracker.get_all_experiments(suite_name="sums")


def key_of(result: Any, name: str) -> tuple[str, str]:
    return next(key for key in (*result.scores, *result.failed_rows) if key[1].partition("@")[0] == name)


def runs(folder: Any) -> dict[str, set[str]]:
    """The attempts of packs that trained and of packs that scored."""
    names = {path.parent.as_posix() for path in (folder.path / "results/runs").glob("*/*/pack.json")}
    return {kind: {name for name in names if f"/{kind}-" in name} for kind in ("pack", "score")}


def test_every_adapter_is_scored_row_by_row_and_the_report_decides_by_it(folder: Any) -> None:
    found = results(folder)
    assert len(found) == 4
    for result in found:
        digits, bits = (result.scores[key_of(result, name)] for name in ("digits", "bits_per_byte"))
        assert 0 < digits.value <= 1
        assert digits.num_items == result.scores["eval", "exact_match"].num_items == 4
        loss = result.scores["eval", "loss"]
        assert bits.num_items == loss.num_items == 6
        # All bytes are tokens, and each answer has one end marker more.
        assert bits.value == pytest.approx(loss.value / 0.693147, rel=0.05)
        assert bits.value > loss.value / 0.693148
    folder.here("lorastudy report --suite-name sums --output sums.md")
    report = (folder.path / "sums.md").read_text(encoding="utf-8")
    assert "digits decides" in report
    assert "Verdicts are about digits, of which more is better" in report
    assert "the function digits of suites/metrics_of_sums.py (sha256 " in report
    assert "| Bits per byte |" in report


def test_a_metric_that_is_added_scores_the_stored_adapters_and_trains_nothing(folder: Any) -> None:
    before, ids = runs(folder), {result.experiment_id: dict(result.scores) for result in results(folder)}
    write_suite(folder, "bits_per_byte", "metrics_of_sums.py:digits", "token_f1", "metrics_of_sums.py:fussy")
    dry = folder.here("lorastudy suite suites/sums.yaml --dry-run").stdout
    assert "4 of them done; 0 to run in 0 packs; re-scores 4 adapters, about " in dry
    assert "stored adapters are scored by token_f1 and fussy; nothing is trained for it" in dry
    done = folder.here("lorastudy suite suites/sums.yaml")
    assert "scored 4 stored adapters" in done.stdout
    assert runs(folder)["pack"] == before["pack"]
    apples = sum("apples" in row["question"] for row in sums())
    assert 0 < apples < 60
    for result in results(folder):
        for key, score in ids[result.experiment_id].items():
            assert result.scores[key] == score
        failed = result.failed_rows[key_of(result, "fussy")]
        assert failed.num_rows == 4
        assert failed.rows[0].message == "ValueError: no apples"
        assert failed.rows[0].where.startswith("sums.jsonl:")
        assert result.scores["eval", "token_f1"].version == 1
    folder.here("lorastudy report --suite-name sums --output sums.md")
    report = (folder.path / "sums.md").read_text(encoding="utf-8")
    assert "fussy gave no number for " in report
    assert "ValueError: no apples" in report
    again = folder.here("lorastudy suite suites/sums.yaml")
    assert "scored" not in again.stdout


def test_a_frame_has_the_items_of_a_metric_by_its_name(folder: Any) -> None:
    outcome = StudyOutcome(design=Design(experiments=(), rounds=()))
    store = str(folder.path / "results/experiments.db")
    frame = StudyResult(suite_name="sums", store=store, outcome=outcome).items(metric="fussy")
    assert len(frame) == 16
    assert 0 < frame["value"].isna().sum() < 16


def test_a_killed_scoring_goes_on_and_the_store_can_be_made_again(folder: Any) -> None:
    write_suite(folder, "metrics_of_sums.py:digits", "token_f1", "metrics_of_sums.py:fatal")
    folder.here("lorastudy suite suites/sums.yaml")
    assert (folder.path / "was-killed").exists()
    whole = results(folder)
    assert all(key_of(result, "fatal") in result.scores for result in whole)
    assert "sound" in folder.here("lorastudy doctor").stdout
    before = runs(folder)
    connection = sqlite3.connect(folder.path / "results/experiments.db")
    with connection:
        connection.execute("DELETE FROM added_scores")
    connection.close()
    folder.here("lorastudy suite suites/sums.yaml")  # takes them from the folders
    assert (runs(folder), results(folder)) == (before, whole)
    folder.here("lorastudy db rebuild")
    assert [dict(result.scores) for result in results(folder)] == [dict(result.scores) for result in whole]


def test_an_adapter_that_is_gone_is_named(folder: Any) -> None:
    one = results(folder)[0]
    adapter = folder.path / one.run_folder / one.adapter_path
    published = folder.path / "output" / one.name
    adapter.rename(adapter.with_name("away"))
    published.rename(published.with_name("away"))
    write_suite(folder, "metrics_of_sums.py:digits", "contains")
    told = folder.here("lorastudy suite suites/sums.yaml")
    assert "scored 3 stored adapters" in told.stdout
    assert "the adapter is gone from its run folder and from the output folder" in told.stderr
