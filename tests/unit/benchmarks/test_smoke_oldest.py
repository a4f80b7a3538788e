"""What the smoke run installs, how it counts and keeps, and when it is skipped; nothing is installed here."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

import documents
from benchmarks import smoke_oldest
from benchmarks.smoke_oldest import DEMO, OLDEST, PINNED, ROOT, TESTS, Part, WheelsMissingError
from lorastudy.report.markdown import render_markdown

REPORT = """<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest" errors="1"
 failures="2" skipped="3" tests="10" time="1.234" timestamp="2026-11-30T16:40:00"><testcase time="9"/></testsuite></testsuites>"""
NO_VERSION = "Could not find a version that satisfies the requirement torch==2.11.0 (from versions: none)"
PIP_SAYS = f"WARNING: ...\nERROR: {NO_VERSION}\nERROR: No matching distribution found for torch==2.11.0\n"
IMPOSSIBLE = (
    "ERROR: Cannot install torch==2.11.0 because ...\nERROR: ResolutionImpossible: for help visit ...\n"
)


def test_the_oldest_set_is_the_pinned_one_with_a_few_versions_in_other_places() -> None:
    lines = smoke_oldest.oldest_set(ROOT)
    pinned = {line for line in (ROOT / PINNED).read_text().splitlines() if line and not line.startswith("#")}
    assert len(lines) == len(pinned)
    assert {line.partition("==")[0] for line in set(lines) - pinned} == {"peft", "torch", "transformers"}


def test_peft_and_transformers_are_the_oldest_that_the_ranges_allow() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(text.split(">=") for text in project["dependencies"])
    oldest = dict(line.split("==") for line in smoke_oldest.oldest_set(ROOT))
    for name in ("peft", "transformers"):
        assert oldest[name].startswith(bounds[name] + ".")


def test_every_part_names_files_that_are_there() -> None:
    assert all((ROOT / file).exists() for file, *_ in TESTS.values())


def test_a_report_of_pytest_is_counted_and_a_broken_fixture_is_a_failure() -> None:
    # 10 tests: 2 failures + 1 error, 3 skipped, 10 - 3 - 3 = 4 passed
    assert smoke_oldest.counted(REPORT) == {"num_passed": 4, "num_failed": 3, "num_skipped": 3}


def test_a_line_says_what_came_of_a_part() -> None:
    part = Part(name="kernel count", exit_code=1, seconds=3.21, num_passed=4, num_failed=1, num_skipped=0)
    assert smoke_oldest.line(part) == "failed kernel count: 4 passed, 1 failed, 0 skipped (3.2 s)"
    assert smoke_oldest.line(Part(name=DEMO, exit_code=0, seconds=50.0)) == "passed demo (50.0 s)"


def test_without_wheels_it_says_why_in_one_line_writes_nothing_and_ends_with_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(smoke_oldest, "RESULTS", tmp_path / "smoke_oldest.json")
    monkeypatch.setattr(smoke_oldest, "installed", lambda _: smoke_oldest._pip_install(Path("python"), []))
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stdout="", stderr=PIP_SAYS)
    )
    assert smoke_oldest.main([]) == 0
    assert capsys.readouterr().out == f"skipped: {NO_VERSION}\n"
    assert not list(tmp_path.iterdir())


def test_versions_that_contradict_each_other_are_a_mistake_and_not_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = SimpleNamespace(returncode=1, stdout="The user requested torch==2.11.0\n", stderr=IMPOSSIBLE)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    with pytest.raises(RuntimeError, match=r"^requirements-oldest\.txt contradicts"):
        smoke_oldest._pip_install(Path("python"), [])


def test_a_limit_of_the_users_own_pip_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    said = SimpleNamespace(
        returncode=1, stdout="The user requested (constraint) torch<=2.9\n", stderr=IMPOSSIBLE
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    with pytest.raises(WheelsMissingError, match=r"^Cannot install torch==2\.11\.0 because"):
        smoke_oldest._pip_install(Path("python"), [])


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (PIP_SAYS, NO_VERSION),
        ("Traceback ...\nOSError: no route", "OSError: no route"),
        ("", "pip gave no reason"),
    ],
)
def test_the_reason_is_pips_first_error_or_its_last_line(said: str, reason: str) -> None:
    assert smoke_oldest.reason(said) == reason


def test_an_environment_is_made_once_for_the_same_requirements(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[str] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: made.append(command[-1]))
    monkeypatch.setattr(smoke_oldest, "python_for_wheels", lambda: sys.executable)
    monkeypatch.setattr(smoke_oldest, "_pip_install", lambda _, options: made.append(options[-1]))
    listed = str(tmp_path / "requirements.txt")
    assert smoke_oldest.installed(tmp_path) == tmp_path / "bin" / "python"
    assert made == [str(tmp_path), listed, str(ROOT)]
    smoke_oldest.installed(tmp_path)
    assert len(made) == 3
    (tmp_path / "installed.txt").write_text("torch==2.9.0\n", encoding="utf-8")
    smoke_oldest.installed(tmp_path)
    assert len(made) == 6


def test_a_shim_on_the_path_that_does_not_start_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shim, python = tmp_path / "python3.12", tmp_path / "versions" / "3.12.1" / "bin" / "python"
    python.parent.mkdir(parents=True)
    for file, code in ((shim, 127), (python, 0)):
        file.write_text(f"#!/bin/sh\nexit {code}\n", encoding="utf-8")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert smoke_oldest.python_for_wheels() == str(python)
    python.unlink()
    assert smoke_oldest.python_for_wheels() == sys.executable


def test_a_run_replaces_its_own_and_leaves_the_others(tmp_path: Path) -> None:
    file = tmp_path / "smoke.json"
    for requirements, number in ((OLDEST, 1), (PINNED, 2), (OLDEST, 3)):
        smoke_oldest.keep(file, requirements, {"number": number})
    assert json.loads(file.read_text()) == {OLDEST: {"number": 3}, PINNED: {"number": 2}}


def test_the_documents_show_a_failed_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(documents.ROOT / "docs"))
    smoke_table = importlib.import_module("smoke_table")
    kept = json.loads(smoke_oldest.RESULTS.read_text(encoding="utf-8"))
    for part in kept[OLDEST]["parts"]:
        if part["name"] == DEMO:
            part["exit_code"] = 1
    kept[OLDEST]["parts"][0] |= {"num_passed": 1234, "num_failed": 7}
    results = tmp_path / smoke_table.RESULTS
    results.parent.mkdir(parents=True)
    results.write_text(json.dumps(kept), encoding="utf-8")
    shown = render_markdown(smoke_table.smoke_blocks(tmp_path), output=tmp_path / "README.md", plots=tmp_path)
    (row,) = (line for line in shown.splitlines() if "make smoke-oldest" in line)
    others = sum(part["num_passed"] or 0 for part in kept[OLDEST]["parts"][1:])
    assert re.search(rf"\| {1234 + others:,} \| 7 \| \d+ \| failed \|", row)
