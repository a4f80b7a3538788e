"""Imported results in the store: once each, apart from one's own, and labelled."""

import json
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from lorastudy.errors import StoreError
from lorastudy.store import ExperimentTracker
from lorastudy.store.rebuilding import rebuild_store
from lorastudy.store.views import ImportedResult, ImportedScore

RESULT = ImportedResult(
    suite_name="public",
    arm="r8",
    seed=0,
    settings={"lora_rank": 8, "learning_rate": 1e-4, "target_modules": ["q_proj"]},
    sources={"base_model": "hub:org/model@abc", "environment": "torch 2.9"},
    scores=(
        ImportedScore(metric="accuracy", value=0.5, unit="share", lower_is_better=False, num_items=100),
        ImportedScore(metric="loss", value=1.25, unit="nats", lower_is_better=True),
    ),
    costs={"num_trainable_parameters": 1000.0},
    tool="a tool",
    file="results.csv",
    file_sha256="00ff",
    location="results.csv:2",
)
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def tracker(database):
    with ExperimentTracker(database, writable=True, clock=lambda: AT) as tracker:
        yield tracker


def test_what_is_read_is_what_was_written_with_its_time(tracker):
    unseeded = replace(RESULT, seed=None, location="results.csv:3")
    assert tracker.add_imported([RESULT, unseeded]) == 2
    assert tracker.get_imported() == [
        replace(RESULT, imported_at=AT.isoformat()),
        replace(unseeded, imported_at=AT.isoformat()),
    ]


def test_a_second_time_adds_nothing_also_from_a_copy(tracker):
    tracker.add_imported([RESULT])
    copy = replace(RESULT, file="copy.csv", file_sha256="11", location="copy.csv:9")
    assert tracker.add_imported([RESULT, copy]) == 0
    assert [result.file for result in tracker.get_imported()] == ["results.csv"]


def test_what_is_new_in_a_longer_file_is_added_at_the_end(tracker):
    tracker.add_imported([RESULT])
    new = replace(RESULT, seed=1, file_sha256="11")
    assert tracker.add_imported([new, replace(RESULT, file_sha256="11")]) == 1
    assert [result.seed for result in tracker.get_imported()] == [0, 1]


def test_of_one_suite_only(tracker):
    tracker.add_imported([RESULT, replace(RESULT, suite_name="other")])
    assert [result.suite_name for result in tracker.get_imported("other")] == ["other"]


def test_imported_results_are_in_no_other_read(tracker, make_experiment):
    tracker.register("ranks", [make_experiment(8)])
    tracker.add_imported([RESULT])
    assert [result.suite_name for result in tracker.get_all_experiments()] == ["ranks"]
    assert [suite.suite_name for suite in tracker.get_suites()] == ["ranks"]
    assert RESULT.id not in tracker.known_experiments()


def test_a_suite_of_own_runs_takes_no_imported_results(tracker, make_experiment):
    tracker.register("public", [make_experiment(8)])
    with pytest.raises(
        StoreError, match="'public' is a suite of runs of your own; import under another name"
    ):
        tracker.add_imported([RESULT])
    assert tracker.get_imported() == []


def test_imported_results_take_no_runs_of_one_s_own(tracker, make_experiment):
    tracker.add_imported([RESULT])
    with pytest.raises(StoreError, match="'public' holds imported results; give the suite another name"):
        tracker.register("public", [make_experiment(8)])
    assert tracker.get_all_experiments() == []


def test_the_export_has_them_apart_and_labelled(tracker, make_experiment, tmp_path):
    tracker.register("ranks", [make_experiment(8)])
    tracker.export_to_json(tmp_path / "own.json")
    assert "imported" not in json.loads((tmp_path / "own.json").read_text())
    tracker.add_imported([RESULT])
    tracker.export_to_json(tmp_path / "both.json")
    body = json.loads((tmp_path / "both.json").read_text())
    assert len(body["experiments"]) == 1
    (imported,) = body["imported"]
    assert (imported["result_id"], imported["tool"], imported["file_sha256"]) == (RESULT.id, "a tool", "00ff")


def test_their_rows_are_held_against_their_hashes(tracker, database):
    tracker.add_imported([RESULT])
    assert tracker.verify() == []
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE imported_results SET scores = replace(scores, '0.5', '0.6')")
    connection.close()
    assert [row.table for row in tracker.verify()] == ["imported_results"]


def test_a_store_that_is_made_again_keeps_them(tracker, database, tmp_path):
    tracker.add_imported([RESULT])
    before = tracker.get_imported()
    tracker.close()
    rebuild_store(database, runs=tmp_path / "runs")
    with ExperimentTracker(database) as rebuilt:
        assert rebuilt.get_imported() == before
