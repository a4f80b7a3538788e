"""The row of flipped bits sees a reader that does not look."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorastudy import records
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
