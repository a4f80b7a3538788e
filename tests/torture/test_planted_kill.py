"""The row sees what it is there to see: each test plants a bug and expects a violation."""

from pathlib import Path

import pytest

from lorastudy.engine.packed import PackedEngine
from lorastudy.protocol.records import PackStep
from lorastudy.train import checkpointing
from torture.faults import kill


@pytest.fixture(autouse=True)
def late_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the worker, in the last but one step: by then two checkpoints are there."""
    monkeypatch.setattr(kill, "MOST_KILLS", 1)
    monkeypatch.setattr(
        kill,
        "_drawn",
        lambda *_, limits: kill.Kill(victim="worker, step", number=kill.NUM_STEPS - 1, delay=0.0),
    )


def test_a_random_stream_that_is_not_restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    restore = PackedEngine.restore

    def forgetful(engine: PackedEngine, state: object) -> None:
        restore(engine, state)
        engine._adapters.clock.passes_K[:] = [0] * len(engine.arms)

    monkeypatch.setattr(PackedEngine, "restore", forgetful)
    assert kill.run(amount=1, seed=1, folder=tmp_path).num_violations > 0


def test_records_that_are_not_carried_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    part_of = checkpointing.part_of

    def losing(record: object, *rest: object, **named: object) -> object:
        is_lost = isinstance(record, PackStep) and record.step == 1
        return None if is_lost else part_of(record, *rest, **named)

    monkeypatch.setattr(checkpointing, "part_of", losing)
    assert kill.run(amount=1, seed=1, folder=tmp_path).num_violations > 0


def test_without_a_bug_such_a_kill_is_survived(tmp_path: Path) -> None:
    assert kill.run(amount=1, seed=1, folder=tmp_path).num_violations == 0
