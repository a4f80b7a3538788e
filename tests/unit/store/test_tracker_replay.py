"""The store is rebuilt from run folders, and comes out as it was."""

import dataclasses
import os
from pathlib import Path

import pytest

from lorastudy.errors import StoreError
from lorastudy.protocol.records import DONE_NAME, Outcome, Pack, RecordWriter
from lorastudy.store import ExperimentTracker, rebuild, replay

STARTED, ENDED = 1_767_000_000, 1_767_000_600


def write_folder(folder: Path, pack: Pack, records) -> Path:
    folder.mkdir(parents=True)
    pack.write(folder)
    writer = RecordWriter(folder / "records.jsonl")
    for record in records:
        writer.write(record)
    writer.close()
    os.utime(folder / "pack.json", (STARTED, STARTED))
    os.utime(folder / "records.jsonl", (ENDED, ENDED))
    return folder


@pytest.fixture
def pack(make_experiment):
    return Pack(
        id="pack-1", attempt=1, engine="packed", experiments=(make_experiment(8), make_experiment(16))
    )


@pytest.fixture
def folder(tmp_path, pack, make_records):
    return write_folder(tmp_path / "runs" / "1", pack, make_records(*(e.id for e in pack.experiments)))


def without_times(results):
    return [dataclasses.replace(result, started_at=None, finished_at=None) for result in results]


def test_a_rebuilt_store_equals_the_one_that_was_lost(tracker, tmp_path, pack, folder, make_records):
    ids = [experiment.id for experiment in pack.experiments]
    tracker.register("ranks", pack.experiments)
    for each in ids:
        tracker.start_run(each, attempt=1, pack_id=pack.id, engine=pack.engine, run_folder=folder)
    for record in make_records(*ids):
        tracker.take(record, pack_id=pack.id, attempt=1)
    with ExperimentTracker(tmp_path / "rebuilt.db", writable=True) as rebuilt:
        rebuilt.register("ranks", pack.experiments)
        assert replay(rebuilt, folder) == len(make_records(*ids))
        assert without_times(rebuilt.get_all_experiments()) == without_times(tracker.get_all_experiments())
        assert rebuilt.get_steps(ids[1]) == tracker.get_steps(ids[1])
        assert rebuilt.verify() == []


def test_replaying_twice_stores_nothing_twice(tracker, folder):
    assert replay(tracker, folder) > 0
    before = tracker.get_all_experiments()
    assert replay(tracker, folder) == 0
    assert tracker.get_all_experiments() == before


def test_unknown_experiments_are_kept_under_a_name_and_times_are_those_of_the_files(tracker, folder):
    replay(tracker, folder)
    result = tracker.get_all_experiments(suite_name="recovered")[0]
    assert (result.name, result.run_folder) == ("r8_s0", str(folder))
    assert (result.started_at, result.finished_at) == (
        "2025-12-29T09:20:00+00:00",
        "2025-12-29T09:30:00+00:00",
    )


def test_a_run_without_outcome_crashed(tracker, tmp_path, pack, make_records):
    first = pack.experiments[0].id
    records = [record for record in make_records(first) if not isinstance(record, Outcome)]
    replay(tracker, write_folder(tmp_path / "cut", pack, records))
    result = tracker.get_experiment(first)
    assert (result.status, result.failure_kind, result.num_steps) == ("failed", "crashed", 2)
    assert result.environment is not None


def test_a_torn_last_line_loses_only_that_line(tracker, folder):
    records = folder / "records.jsonl"
    records.write_bytes(records.read_bytes()[:-10])
    replay(tracker, folder)
    assert [result.status for result in tracker.get_all_experiments()] == ["completed", "completed"]
    assert tracker.get_all_experiments()[0].pack_profile is None


def test_attempts_are_replayed_in_their_order(tracker, tmp_path, pack, folder, make_records):
    ids = [experiment.id for experiment in pack.experiments]
    second = dataclasses.replace(pack, attempt=2)
    failed = Outcome(experiment_id=ids[0], status="failed", failure_kind="diverged", message="NaN")
    later = write_folder(tmp_path / "runs" / "0", second, [failed])
    stored = rebuild(tracker, [later, folder], suite_name="ranks")
    assert stored == len(make_records(*ids)) + 1
    assert [(r.suite_name, r.status, r.attempt) for r in tracker.get_all_experiments()] == [
        ("ranks", "completed", 1)
    ] * 2
    assert tracker.next_attempt(ids) == 3


def test_an_older_folder_has_nothing_to_say_after_a_newer_attempt(tracker, tmp_path, pack, folder):
    later = write_folder(tmp_path / "runs" / "2", dataclasses.replace(pack, attempt=2), [])
    replay(tracker, later)
    assert replay(tracker, folder) == 0
    assert {result.attempt for result in tracker.get_all_experiments()} == {2}


def test_a_damaged_line_is_named_and_what_is_before_it_is_kept(tracker, folder):
    records = folder / "records.jsonl"
    records.write_text(records.read_text().replace("completed", "competed!", 1))
    with pytest.raises(StoreError, match=r"records\.jsonl: damaged: checksum does not match"):
        replay(tracker, folder)
    assert len(tracker.get_all_experiments()[0].scores) == 2


@pytest.mark.parametrize("name", ["predictions.jsonl", "race.jsonl"])
def test_damage_beside_the_records_is_named_as_what_it_is_and_costs_no_record(tracker, folder, name):
    (folder / name).write_text("{not a record}\n")
    with pytest.raises(StoreError, match=rf"{name}: damaged: .*the records before that are stored"):
        replay(tracker, folder)
    assert {result.status for result in tracker.get_all_experiments()} == {"completed"}


def test_all_that_is_damaged_is_named(tracker, folder):
    (folder / "predictions.jsonl").write_text("{not a record}\n")
    (folder / DONE_NAME).touch()
    with (folder / "records.jsonl").open("a") as file:
        file.write("{torn")
    with pytest.raises(
        StoreError,
        match=r"predictions\.jsonl: damaged: .*; .*records\.jsonl: damaged: its last line is cut off",
    ):
        replay(tracker, folder)


def test_a_folder_without_a_pack_is_refused(tracker, tmp_path):
    with pytest.raises(StoreError, match="not a run folder"):
        replay(tracker, tmp_path)
