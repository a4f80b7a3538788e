"""Scores that a worker wrote before its runner was killed."""

from pathlib import Path

import pytest

from lorastudy.errors import StoreError
from lorastudy.protocol.records import PACK_NAME, RECORDS_NAME, Outcome, Pack, RecordWriter
from lorastudy.protocol.scoring import AddedScore, Scoring, StoredAdapter
from lorastudy.running.scoring import take_scores_left
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.metrics import BUILT_IN
from planned import experiments


@pytest.fixture
def trained(tracker: ExperimentTracker) -> list[Experiment]:
    trained = experiments("a", "b")
    tracker.register("suite", trained)
    for each in trained:
        tracker.start_run(each.id, attempt=1, pack_id="pack-1", engine="packed", run_folder="elsewhere")
        outcome = Outcome(experiment_id=each.id, status="completed", step=1)
        tracker.take(outcome, pack_id="pack-1", attempt=1)
    return trained


def left_behind(runs: Path, trained: list[Experiment], *, number: int = 1) -> Path:
    """The folder of a scoring attempt with a score of each experiment."""
    folder = runs / f"score-{number}" / "attempt-1"
    folder.mkdir(parents=True)
    metric = BUILT_IN["token_f1"]
    adapters = {each.id: StoredAdapter(attempt=1, folder="adapter") for each in trained}
    scoring = Scoring(metrics=(metric,), adapters=adapters)
    Pack(id=f"score-{number}", attempt=1, engine="packed", experiments=tuple(trained), scoring=scoring).write(
        folder
    )
    writer = RecordWriter(folder / RECORDS_NAME)
    for each in trained:
        writer.write(
            AddedScore(
                experiment_id=each.id, attempt=1, split="eval", metric=metric.key, version=metric.version,
                unit="share", value=0.5, items=(0.5, 0.5),
            )
        )  # fmt: skip
    writer.close()
    return folder


def scored(tracker: ExperimentTracker, trained: list[Experiment]) -> list[str]:
    metric = BUILT_IN["token_f1"]
    results = tracker.get_results([each.id for each in trained])
    return [
        each.name
        for each in trained
        if results[each.id].was_measured("eval", metric.key, version=metric.version)
    ]


def test_scores_left_behind_are_stored(
    tracker: ExperimentTracker, trained: list[Experiment], tmp_path: Path
) -> None:
    left_behind(tmp_path, trained)
    assert take_scores_left(tracker, runs=tmp_path) == []
    assert scored(tracker, trained) == ["a", "b"]


def test_a_damaged_line_is_named_and_what_stands_before_it_is_stored(
    tracker: ExperimentTracker, trained: list[Experiment], tmp_path: Path
) -> None:
    records = left_behind(tmp_path, trained) / RECORDS_NAME
    records.write_text(records.read_text().replace(f'"{trained[1].id}"', '"exp-other"'))
    (problem,) = take_scores_left(tracker, runs=tmp_path)
    assert problem.startswith(f"{records}: damaged: ")
    assert scored(tracker, trained) == ["a"]


def test_a_damaged_pack_is_named_and_the_next_folder_is_read(
    tracker: ExperimentTracker, trained: list[Experiment], tmp_path: Path
) -> None:
    pack = left_behind(tmp_path, trained) / PACK_NAME
    pack.write_text(pack.read_text()[:-20])
    left_behind(tmp_path, trained, number=2)
    (problem,) = take_scores_left(tracker, runs=tmp_path)
    assert problem.startswith(f"{pack}: damaged: ")
    assert scored(tracker, trained) == ["a", "b"]


def test_an_error_of_the_store_is_none_of_a_folder(
    tracker: ExperimentTracker, trained: list[Experiment], tmp_path: Path
) -> None:
    left_behind(tmp_path / "runs", trained)
    with (
        ExperimentTracker(tmp_path / "experiments.db") as reading,
        pytest.raises(StoreError, match="open for reading only"),
    ):
        take_scores_left(reading, runs=tmp_path / "runs")
