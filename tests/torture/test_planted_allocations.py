"""The row sees what it is there to see: each test plants a bug and expects a violation."""

from pathlib import Path

import pytest
import torch

from lorastudy.engine.optimise import PackedAdamW
from lorastudy.engine.packed import PackedEngine
from torture.faults import allocations


@pytest.fixture(autouse=True)
def not_the_whole_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocations, "NUM_WHOLE_WAY", 0)


def test_arms_that_feel_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    norms = PackedAdamW.grad_norms
    monkeypatch.setattr(
        PackedAdamW, "grad_norms", lambda self: norms(self).max().expand(len(self.buffers.arms))
    )
    assert allocations.run(amount=12, seed=1, folder=tmp_path).num_violations > 0


def test_a_base_that_is_not_given_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    close = PackedEngine.close

    def careless(engine: PackedEngine) -> None:
        close(engine)
        with torch.no_grad():
            next(engine._base.model.parameters()).add_(1e-3)

    monkeypatch.setattr(PackedEngine, "close", careless)
    assert allocations.run(amount=2, seed=1, folder=tmp_path).num_violations > 0
