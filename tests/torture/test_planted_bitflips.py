"""The row of flipped bits sees a reader that does not look."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorastudy.protocol import records
from lorastudy.store import rows
from lorastudy.store.database import Database
from torture.faults import bitflips


@pytest.mark.torture
def test_records_read_without_their_checksum_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(line: str) -> Any:
        outer = json.loads(line)
        monkeypatch.setattr(records, "_checksum", lambda *_: outer["sha256"])
        return sound(line)

    sound = records.decode

    monkeypatch.setattr(records, "decode", decode)
    result = bitflips.run(amount=200, seed=1, folder=tmp_path)
    assert result.num_violations > 10
    assert "VIOLATED: bit" in result.detail


@pytest.mark.torture
def test_rows_read_without_their_hash_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "is_intact", lambda *_: True)
    result = bitflips.run(amount=100, seed=1, folder=tmp_path)
    assert result.num_violations > 2
    assert "experiments.db" in result.detail


@pytest.mark.slow
@pytest.mark.torture
def test_a_store_whose_indexes_are_not_checked_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Database, "problems", lambda _: [])
    # About every other round of 300 bits hits an index, so rounds go on until one does.
    for seed in range(1, 13):
        folder = tmp_path / str(seed)
        folder.mkdir()
        result = bitflips.run(amount=300, seed=seed, folder=folder)
        if result.num_violations:
            break
    assert result.num_violations > 0
    assert "experiments.db" in result.detail
