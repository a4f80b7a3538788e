"""The README and the tutorial as a reader follows them: every block in order, in an empty folder.

Four things are changed: runs are two steps long, are scored on few rows, and have two ranks and two seeds, since what is
tested is that it works.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import documents
from documents import Block

#: Makes the environment that the tests run in.
INSTALLATION = "make demo"


@pytest.mark.parametrize(
    "page",
    [documents.README, pytest.param(documents.TUTORIAL, marks=pytest.mark.slow)],
    ids=lambda page: page.stem,
)
def test_a_reader_can_follow(page: Path, tmp_path: Path) -> None:
    for block in documents.blocks(page, "bash", "python", "yaml", "json", "console"):
        if block.file_name:
            (tmp_path / block.file_name).write_text(_shortened(block), encoding="utf-8")
        elif "norun" not in block.words and INSTALLATION not in block.text:
            _follow(block, folder=tmp_path)
    reports = [
        path for path in tmp_path.glob("*.md") if "Paired comparisons" in path.read_text(encoding="utf-8")
    ]
    assert len(reports) == 1


def _shortened(block: Block) -> str:
    text, num_lengths = re.subn(r"^max_steps: \d+", "max_steps: 2", block.text, flags=re.MULTILINE)
    if num_lengths:
        text += "max_eval_samples: 16\n"  # at the end, since messages name lines
    text = re.sub(r"lora_rank: \[1, 4, 16\]", "lora_rank: [1, 4]", text)
    return re.sub(r"^seeds: \[.*\]", "seeds: [0, 1]", text, flags=re.MULTILINE)


def _follow(block: Block, *, folder: Path) -> None:
    if block.language == "console":
        _follow_console(block, folder=folder)
        return
    program = (
        ["bash", "-euc"] if block.language == "bash" else [sys.executable, "-W", "error::UserWarning", "-c"]
    )
    done = _run([*program, block.text], folder=folder)
    assert done.returncode == 0, f"{block}\n{block.text}\n{done.stdout}\n{done.stderr}"


def _follow_console(block: Block, *, folder: Path) -> None:
    """A command that fails, and what it says."""
    command, *said = block.text.splitlines()
    done = _run(["bash", "-euc", command.removeprefix("$ ")], folder=folder)
    assert done.returncode == 2
    assert done.stderr.splitlines() == said


def _run(arguments: list[str], *, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
