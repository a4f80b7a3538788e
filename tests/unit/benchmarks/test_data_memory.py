"""What a command costs is what it and all its processes use, and the documents' table says it."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import documents
from benchmarks.data_memory import RESULTS, Measured, keep, main, measure, write_rows
from lorastudy.data.load import all_rows
from lorastudy.report.markdown import render_markdown
from lorastudy.report.numbers import ABSENT

#: Holds 150 MiB in a process of its own, and works for half a second in another.
_PROGRAM = """
import subprocess, sys
hold = "block = bytearray(150 * 2**20)"
work = "import time\\nwhile time.process_time() < 0.5: pass"
for program in (hold, work):
    subprocess.run([sys.executable, "-c", program], check=True)
"""


def test_time_and_memory_are_those_of_all_processes(tmp_path: Path):
    held = bytearray(400 * 2**20)  # by the process that measures, which must not count
    found = measure([sys.executable, "-c", _PROGRAM], folder=tmp_path)
    del held
    assert 150 * 2**20 < found["peak_bytes"] < 300 * 2**20
    assert 0.5 <= found["cpu_seconds"] < 5
    assert found["wall_seconds"] >= 0.5
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_fails_is_no_measurement(tmp_path: Path):
    with pytest.raises(RuntimeError, match="ended with 3"):
        measure([sys.executable, "-c", "raise SystemExit(3)"], folder=tmp_path)


def test_the_rows_are_always_the_same_and_can_be_read(tmp_path: Path):
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    numbers = [write_rows(path, num_bytes=20_000) for path in paths]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert 20_000 <= paths[0].stat().st_size < 21_000
    rows = all_rows(str(paths[0]))
    assert [len(rows)] * 2 == numbers
    assert rows.dataset.format.name == "alpaca"


def measured(**values: Any) -> Measured:
    row = {
        "commit": "a" * 40, "command": "prepare", "file_bytes": 300_000_100, "num_rows": 520_000, "wall_seconds": 20.0,
        "cpu_seconds": 15.0, "peak_bytes": 70 * 2**20, "load_average": 1.25,
    }  # fmt: skip
    return Measured(**(row | values))


def test_a_measurement_takes_the_place_of_an_earlier_one_of_the_same_version(tmp_path: Path):
    path = tmp_path / "found.json"
    old = measured(commit="b" * 40, cpu_seconds=99.0)
    for found in (old, measured(), measured(command="suite"), measured(cpu_seconds=16.0)):
        keep(path, found)
    assert json.loads(path.read_text())["measured"] == [
        asdict(row) for row in (old, measured(command="suite"), measured(cpu_seconds=16.0))
    ]


def test_the_table_has_a_line_for_each_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(documents.ROOT / "docs"))
    from data_memory import data_memory_blocks

    def shown() -> str:
        return render_markdown(data_memory_blocks(tmp_path), output=tmp_path / "page.md", plots=tmp_path)

    assert "Not measured yet." in shown()
    path = tmp_path / RESULTS.relative_to(documents.ROOT)
    path.parent.mkdir(parents=True)
    keep(path, measured(command="suite", load_average=None))
    keep(path, measured())
    assert [line for line in shown().splitlines() if "aaaaaaa" in line] == [
        "| 286 MiB | 520,000 | prepare | aaaaaaa | 15.0 s | 20.0 s | 70.0 MiB | 1.2 |",
        f"| 286 MiB | 520,000 | suite | aaaaaaa | 15.0 s | 20.0 s | 70.0 MiB | {ABSENT} |",
    ]


def test_a_small_file_is_measured_by_the_whole_program(tmp_path: Path):
    into = tmp_path / "found.json"
    assert (
        main(["--sizes", "50000", "--commands", "prepare", "--folder", str(tmp_path), "--into", str(into)])
        == 0
    )
    (row,) = json.loads(into.read_text())["measured"]
    assert row["command"] == "prepare"
    assert 20 * 2**20 < row["peak_bytes"] < 400 * 2**20
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
