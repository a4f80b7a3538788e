"""What counts of one base share. That they are right is held against measured steps in `tests/parity/test_memory.py`."""

from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from lorastudy.engine import footprints
from lorastudy.engine.footprints import footprint
from lorastudy.protocol.jobs import FootprintQuestion, Precision


def test_what_the_loss_takes_is_counted_once_for_a_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = FootprintQuestion(
        engine="packed", folder=str(tiny.save_base(tmp_path / "model")), precision=Precision(quantization="fp32"),
        targets=(("q", None),), gradient_checkpointing=False, has_dropout=False, has_one_arm=True,
        has_one_group=True, row_lengths=(5, 6),
    )  # fmt: skip
    growths: footprints.LossGrowths = {}
    first = footprint(question, device=tiny.CPU, growths=growths)
    assert first == footprint(question, device=tiny.CPU)
    assert growths == {(question.folder, question.precision): first.loss_growth}

    def refuse(*_: object, **__: object) -> int:
        raise AssertionError("counted again")

    monkeypatch.setattr(footprints, "count_loss", refuse)
    other = footprint(replace(question, targets=(("v", None),)), device=tiny.CPU, growths=growths)
    assert other.loss_growth == first.loss_growth
    in_bf16 = replace(question, precision=Precision(quantization="bf16"))
    with pytest.raises(AssertionError, match="counted again"):
        footprint(in_bf16, device=tiny.CPU, growths=growths)
