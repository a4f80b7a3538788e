"""The notebook of the examples runs from its first cell to its last, in an empty folder."""

import ast
import json
from pathlib import Path

import pytest

from here import plans_answered_here, workers_forked_here

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def test_every_cell_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last expression of a cell is shown, as a notebook shows it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    names: dict[str, object] = {}
    shown = []
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    with plans_answered_here(), workers_forked_here():
        for source in ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"):
            *statements, last = ast.parse(source).body
            if not isinstance(last, ast.Expr):
                statements.append(last)
            exec(compile(ast.Module(body=statements, type_ignores=[]), "<cell>", "exec"), names)
            if isinstance(last, ast.Expr):
                shown.append(eval(compile(ast.Expression(last.value), "<cell>", "eval"), names))
    done, table, by_rank, _, files = shown
    assert done == (6, "completed")
    assert len(table) == 6
    assert by_rank["mean"].is_monotonic_decreasing
    assert [path.name for path in files[:2]] == ["RESULTS.md", "RESULTS.html"]
    said = capsys.readouterr().out
    assert "6 experiments in" in said
    assert "How sure." in said
