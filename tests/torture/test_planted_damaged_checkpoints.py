"""The row sees what it is there to see: a reader that trusts what it finds is caught."""

from pathlib import Path

import pytest

from lorastudy.protocol.files import MANIFEST_NAME
from lorastudy.train import checkpointing
from torture.faults import damaged_checkpoints


def test_a_checkpoint_that_is_accepted_unchecked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def trusting(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST_NAME}

    monkeypatch.setattr(checkpointing, "read_sealed_folder", trusting)
    monkeypatch.setattr(damaged_checkpoints, "_cuts", lambda _: iter(()))
    assert damaged_checkpoints.run(amount=60, seed=1, folder=tmp_path).num_violations > 0
