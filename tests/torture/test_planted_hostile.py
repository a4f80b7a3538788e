"""Bugs planted where hostile input is met, to show that the row sees them."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from rich.console import Console

from lorastudy.cli import console, plan_output, progress, terminal
from lorastudy.report import html, markdown
from lorastudy.running import adapters, phase_runner
from lorastudy.store import export
from lorastudy.suite import suite
from torture import hostile_pages, hostile_terminal
from torture.faults import hostile


def violations(folder: Path, *kinds: str) -> Iterator[str]:
    """What goes wrong in the cases of these kinds, one tried after the other."""
    cases = [case for case in hostile.all_cases() if case.kind in kinds]
    assert cases
    found = (hostile.attempted(case, folder / str(number)) for number, case in enumerate(cases))
    return (violation for violation in found if violation is not None)


def test_the_list_is_long() -> None:
    assert len(list(hostile.all_cases())) >= 200


def test_text_that_is_not_escaped_in_html(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "escape", lambda text, quote=True: text)
    assert len(list(islice(violations(tmp_path, "text in a report"), 4))) == 4


def test_text_that_is_not_escaped_in_markdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "escape", lambda text: text.replace("\n", " "))
    assert len(list(islice(violations(tmp_path, "text in a report"), 4))) == 4


@pytest.mark.skipif(hostile_pages.browser() is None, reason="needs a browser")
def test_a_script_that_is_not_escaped_still_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "escape", lambda text, quote=True: text)
    assert not list(violations(tmp_path / "safe", "page in a browser"))
    monkeypatch.setattr(html, "_policy", lambda scripts: "default-src * 'unsafe-inline' 'unsafe-eval'")
    assert "a script ran" in next(violations(tmp_path / "unsafe", "page in a browser"))


def test_names_that_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "name_problem", lambda name: None)
    assert "was accepted" in list(violations(tmp_path, "name of a suite"))


ON_A_TERMINAL = (
    "text on a terminal",
    "text in a plan",
    "text in a store",
    "text in an imported table",
    "text of a worker",
)


@pytest.mark.parametrize("kind", ON_A_TERMINAL)
def test_escape_sequences_that_reach_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(terminal, "printable_lines", lambda text: text)
    assert any("reached the terminal" in each for each in violations(tmp_path, kind))


@pytest.mark.parametrize("kind", ["text on a terminal", "text in a plan", "text of a worker"])
def test_text_that_rich_reads_as_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(console, "PlainConsole", Console)
    for module in (plan_output, progress, hostile_terminal):
        monkeypatch.setattr(module, "PlainConsole", Console)
    assert any("its own language" in each for each in violations(tmp_path, kind))


def test_formulas_that_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "defused", lambda value: value)
    assert len(list(violations(tmp_path, "formula in CSV"))) > 10


def test_links_that_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (phase_runner, adapters):
        monkeypatch.setattr(module, "inside", lambda folder, path: path)
    monkeypatch.setattr(adapters, "files_alone", lambda folder: folder)
    assert len(list(violations(tmp_path, "link"))) >= 5


def test_something_that_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(text, folder, canary):
        os.system(f"touch {canary}")

    case = hostile.Case(kind="YAML", what="x", check=lambda folder, canary: careless("x", folder, canary))
    assert hostile.attempted(case, tmp_path) == "was executed"
