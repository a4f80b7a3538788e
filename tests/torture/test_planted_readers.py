"""The row of readers sees a store whose readers do not wait, and one that writes half of a record."""

import sqlite3
import time
from pathlib import Path

import pytest

from lorastudy.store import ExperimentTracker
from torture import studies
from torture.faults import readers


@pytest.mark.torture
def test_half_of_a_record_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = ExperimentTracker.take

    def without_second_steps(self: ExperimentTracker, record: object, **origin: object) -> bool:
        return getattr(record, "step", None) == 2 or sound(self, record, **origin)

    monkeypatch.setattr(ExperimentTracker, "take", without_second_steps)
    result = readers.run(amount=1, seed=1, folder=tmp_path)
    assert result.num_violations > 0
    assert "steps are missing" in result.detail


@pytest.mark.torture
def test_a_store_that_locks_its_readers_out_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plant: readers that do not wait, and a writer that keeps the whole file to itself for half a second."""
    monkeypatch.setattr(readers, "DRIVER", tmp_path / "driver.py")
    (tmp_path / "driver.py").write_text(
        "from lorastudy.store import database\n"
        "database.LOCK_TIMEOUT_SECONDS = 0\n" + (readers.HERE / "reader_driver.py").read_text()
    )
    sound = readers.write_suite

    def keeping_others_out(folder: Path, *, first_data_seed: int) -> None:
        sound(folder, first_data_seed=first_data_seed)
        other = sqlite3.connect(folder / studies.DATABASE, isolation_level=None)
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(0.5)
        other.close()

    monkeypatch.setattr(readers, "write_suite", keeping_others_out)
    result = readers.run(amount=1, seed=1, folder=tmp_path)
    assert result.num_violations > 0
    assert "locked" in result.detail
