"""Bugs planted in the reading of data files, to show that the row sees them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lorastudy.data import load, sources, values
from lorastudy.errors import DataError
from torture.faults import data_files


def detail(folder: Path, *, amount: int = 120) -> str:
    result = data_files.run(amount=amount, seed=4, folder=folder)
    assert (result.num_violations > 0) == ("VIOLATED" in result.detail)
    return result.detail


def test_without_a_bug_nothing_is_violated(tmp_path: Path) -> None:
    assert "VIOLATED" not in detail(tmp_path)


def test_the_last_of_two_equal_keys_taken_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "_DECODER", json.JSONDecoder())
    assert "differs" in detail(tmp_path, amount=400)


def test_rows_lost_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources._READERS, ".jsonl", lambda *file: list(sources._jsonl_rows(*file))[:-1])
    assert "rows in the file" in detail(tmp_path)


def test_a_column_that_is_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = load.render

    def without_the_prompt(row, fmt, **options):
        rendering = real(row, fmt, **options)
        return replace(rendering, segments=rendering.segments[-1:])

    monkeypatch.setattr(load, "render", without_the_prompt)
    assert "is not in what is trained" in detail(tmp_path)


def test_an_exception_that_is_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_named", lambda *_, **__: {}["planted"])
    assert "KeyError('planted')" in detail(tmp_path)


def test_a_message_without_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def misplaced(fields, header, *, where):
        raise DataError(f"{where.rpartition(':')[0]}: something is wrong")

    monkeypatch.setattr(sources, "_named", misplaced)
    assert "does not name the row" in detail(tmp_path)
