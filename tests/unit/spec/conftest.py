"""A folder in which a good suite file finds what it names."""

from collections.abc import Callable
from pathlib import Path

import pytest

GOOD = """\
suite_name: good
base_model: lab
dataset_path: rows.jsonl
experiments:
  - name: small
    lora_rank: 8
  - lora_rank: 16
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Callable[[str], Path]:
    def write_suite(text: str) -> Path:
        (folder / "s.yaml").write_text(text, encoding="utf-8")
        return Path("s.yaml")

    return write_suite
