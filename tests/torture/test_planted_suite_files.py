"""Bugs planted in the reading of suite files, to show that the row sees them."""

from pathlib import Path

import pytest

from lorastudy.suite import levels, suite_file, yaml_reading
from torture.faults import suite_files

AMOUNT = 150


def violations(folder: Path) -> str:
    result = suite_files.run(amount=AMOUNT, seed=3, folder=folder)
    assert (result.num_violations > 0) == ("VIOLATED" in result.detail)
    return result.detail if result.num_violations else ""


def test_without_a_bug_nothing_is_violated(tmp_path: Path) -> None:
    assert violations(tmp_path) == ""


def test_unknown_keys_that_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = levels.read_level

    def lenient(values, *, scope, problems):
        known = {key: node for key, node in values.items() if key in scope.known()}
        return real(known, scope=scope, problems=problems)

    monkeypatch.setattr(suite_file, "read_level", lenient)
    assert "the file says" in violations(tmp_path) or "second reading failed" in violations(tmp_path)


def test_a_known_key_that_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = suite_file.combinations
    monkeypatch.setattr(
        suite_file, "combinations",
        lambda level: ({k: v for k, v in values.items() if k != "max_grad_norm"} for values in real(level)),
    )  # fmt: skip
    assert "the file says" in violations(tmp_path)


def test_the_last_of_two_equal_keys_taken_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = yaml_reading.Problems.add

    def add(self, place, *, cause, path=""):
        if "appears twice, first" not in cause:
            real(self, place, cause=cause, path=path)

    monkeypatch.setattr(yaml_reading.Problems, "add", add)
    assert (
        "a key appears twice and was accepted" in suite_files.run(amount=600, seed=3, folder=tmp_path).detail
    )


def test_void_and_overridden_keys_that_nobody_speaks_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite_file, "check_effects", lambda *_, **__: None)
    monkeypatch.setattr(suite_file, "overridden", lambda *_, **__: ())
    assert "nothing was said" in suite_files.run(amount=600, seed=3, folder=tmp_path).detail


def test_errors_without_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_reading.Place, "__str__", lambda place: place.source)
    assert "no place" in violations(tmp_path)


def test_an_exception_that_is_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_, **__):
        raise RecursionError("too deep")

    monkeypatch.setattr(suite_file, "check_names", broken)
    assert "RecursionError" in violations(tmp_path)
