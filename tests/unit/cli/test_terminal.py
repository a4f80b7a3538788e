"""What commands say aloud, and that what others wrote does not steer the terminal."""

import ast
import contextlib
import io
import json
from pathlib import Path

import pytest
from rich.table import Table

from lorastudy import lab
from lorastudy.cli import evaluate, terminal
from lorastudy.cli.console import PlainConsole
from lorastudy.cli.main import main
from lorastudy.cli.plan_output import show_plan
from lorastudy.cli.running import planned_only
from lorastudy.planning.design import Designer
from lorastudy.planning.suite_facts import data_notes, read_data
from lorastudy.suite.safe_text import Privacy
from lorastudy.suite.suite_file import suite_from_values

pytestmark = pytest.mark.long


def rows(path, values):
    path.write_text("".join(json.dumps(row) + "\n" for row in values), encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Distinct, and of the few words that the lab's model knows.
    answers = list(dict.fromkeys(row["completion"] for row in lab.rows("facts")))[:40]
    rows(
        tmp_path / "rows.jsonl",
        [{"prompt": f"p{n} " if n > 4 else " ", "completion": answer} for n, answer in enumerate(answers)],
    )
    return tmp_path


def plan(capsys, **values):
    suite = suite_from_values(
        {"dataset_path": "rows.jsonl", "eval_fraction": 0.3, "seeds": [0], **values}, where="run"
    )
    experiments = Designer(suite=suite).design().experiments
    show_plan(planned_only(suite, database="none.db"))
    said = capsys.readouterr()
    return experiments, said.err + said.out


def test_rows_that_ask_nothing_are_counted_before_the_run(folder, capsys):
    experiments, out = plan(capsys)
    (note,) = data_notes(experiments, read_data(experiments))
    assert note.endswith("training rows have an empty prompt")
    assert note.startswith("rows.jsonl: ")
    assert f"note: {note}" in out


def test_rows_that_ask_nothing_are_counted_when_data_are_prepared(folder, capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--dataset", "rows.jsonl"])
    assert "Empty prompts: 5 (kept)" in capsys.readouterr().out


def test_code_of_a_models_own_is_said_aloud_and_off_by_default(folder, capsys):
    _, out = plan(capsys)
    assert "trust_remote_code" not in out
    _, out = plan(capsys, trust_remote_code=True)
    assert "note: trust_remote_code: lab runs its own Python code, with your rights" in out


def test_a_type_in_a_file_is_said_aloud(folder, capsys):
    (folder / "mine.py").write_text(
        "from lorastudy.suite.experiment_types import Custom\nclass Mine(Custom):\n    pass\n",
        encoding="utf-8",
    )
    _, out = plan(capsys, experiment_type="mine.py:Mine")
    assert "note: experiment_type: mine.py:Mine is run, with your rights" in out


def test_brackets_in_names_are_no_markup(folder, capsys):
    _, out = plan(capsys, target_modules=["[red]q[/red]", "[/bold]"])
    assert "[/bold],[red]q[/red]" in out


def test_an_answer_cannot_steer_the_terminal():
    output = io.StringIO()
    answer = {"prompt": "a\x1b[2J", "answer": "b\x1b]52;c;x\x07"}
    evaluate._show(PlainConsole(file=output), {"scores": [], "generations": [answer], "inference": None})
    assert "\x1b" not in output.getvalue()
    assert "a\\x1b[2J" in output.getvalue()


def test_an_error_has_no_secret_and_no_escape_sequence(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    terminal._privacy.cache_clear()
    monkeypatch.setattr(
        Privacy, "of_this_machine", lambda: Privacy(home=str(tmp_path), secrets=("s3cr3t-value",))
    )
    with pytest.raises(SystemExit) as exit_:
        main(["status", "--database", f"{tmp_path}/s3cr3t-value\x1b[31m.db"])
    terminal._privacy.cache_clear()
    assert exit_.value.code == 2
    assert "error: ~/***\\x1b[31m.db: there is no results store here" in capsys.readouterr().err


def test_an_error_of_the_disk_has_no_escape_sequence(monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "plots/\x1b[31m.png")

    monkeypatch.setattr("lorastudy.report.read_report", full)
    monkeypatch.setattr("lorastudy.store.ExperimentTracker", lambda _: contextlib.nullcontext())
    with pytest.raises(SystemExit):
        main(["report"])
    assert "error: plots/\\x1b[31m.png: the disk is full" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[red]x[/red]", "[/]", "[bold", ":warning:", "a\\[b]"])
def test_a_console_shows_a_text_as_it_stands_in_a_table_too(text):
    output = io.StringIO()
    console = PlainConsole(file=output)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    console.print(text)
    console.print(table)
    assert output.getvalue().count(text) == 4


def test_a_console_lets_nothing_in_a_table_steer_the_terminal():
    output = io.StringIO()
    table = Table(title="\x1b[1m")
    table.add_column("\x1b[2m")
    table.add_row("\x1b[3m", "\u202e")
    PlainConsole(file=output).print(table)
    assert not set("\x1b\u202e") & set(output.getvalue())
    assert "\\x1b[3m" in output.getvalue()


def ways_past_the_escaping(source):
    """Calls of `print`, `echo` and the like, and imports of Rich's own console."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            way = getattr(node.func, "id", f".{getattr(node.func, 'attr', '')}")
            if way in {"print", "echo", "secho", ".echo", ".secho", ".write"}:
                yield f"line {node.lineno}: {way}"
        if isinstance(node, ast.ImportFrom) and node.module == "rich.console":
            yield f"line {node.lineno}: rich.console"


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sorted(Path(terminal.__file__).parent.glob("*.py"))
        if path.stem not in {"terminal", "console"}
    ],
    ids=lambda path: path.stem,
)
def test_commands_print_through_the_escaping_alone(path):
    assert list(ways_past_the_escaping(path.read_text(encoding="utf-8"))) == []


def test_ways_past_the_escaping_are_found():
    for source in ("print(1)", "typer.echo(1)", "sys.stdout.write(1)", "from rich.console import Console"):
        assert len(list(ways_past_the_escaping(source))) == 1
    for source in ("say(1)", "console.print(1)", "self._console.print(1)"):
        assert list(ways_past_the_escaping(source)) == []
