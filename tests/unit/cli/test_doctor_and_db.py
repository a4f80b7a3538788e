"""`lorastudy doctor` and `lorastudy db` as typed: what they say, and with which exit code."""

import re
import sqlite3
from pathlib import Path

import pytest

from lorastudy.cli.main import main
from lorastudy.store import ExperimentTracker
from torture import studies


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    studies.run_study(folder, studies.experiments(num_packs=1))
    for weights in (folder / "results" / "runs").rglob("*.safetensors"):
        weights.write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


@pytest.fixture
def study(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder one works in, with the store as it was at first."""
    for file in (finished / "results").glob("experiments.db*"):
        file.unlink()
    main_exit(
        "db",
        "rebuild",
        "--database",
        str(finished / studies.DATABASE),
        "--runs-dir",
        str(finished / "results/runs"),
    )
    monkeypatch.chdir(finished)
    return finished


def main_exit(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def damage() -> None:
    connection = sqlite3.connect(studies.DATABASE)
    with connection:
        connection.execute("UPDATE scores SET value = value + 1 WHERE metric = 'loss'")
    connection.close()


def test_the_doctor_says_that_all_is_well(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_exit("doctor") == 0
    assert "results/experiments.db: sound" in capsys.readouterr().out


def test_damage_is_named_and_mended(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage()
    capsys.readouterr()
    assert main_exit("report") == 2
    assert re.search(r"error: .*damaged: a row of table scores .*lorastudy doctor", capsys.readouterr().err)
    assert main_exit("doctor") == 1
    said = capsys.readouterr().out
    assert len(re.findall(r"^damage: .*table scores \(experiment_id 'exp-", said, re.MULTILINE)) == 2
    assert "lorastudy db rebuild" in said
    assert "2 damages" in said
    assert main_exit("db", "rebuild") == 0
    said = capsys.readouterr().out
    assert "records from run folders" in said
    assert "the old store: results/experiments.db.before-rebuild.backup" in said
    assert main_exit("doctor") == 0


def test_a_backup_is_written_where_one_wants_it_and_nothing_is_overwritten(
    study: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = tmp_path / "copy.db"
    assert main_exit("db", "backup", "--into", str(target)) == 0
    with ExperimentTracker(target) as tracker:
        assert len(tracker.get_all_experiments()) == 2
    assert main_exit("db", "backup", "--into", str(target)) == 2
    assert f"--into: {target} already exists" in capsys.readouterr().err
    assert main_exit("db", "backup") == 0
    assert "wrote results/experiments.db.copy.backup" in capsys.readouterr().out


def test_upgrading_a_current_store_changes_nothing(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(studies.DATABASE).read_bytes()
    assert main_exit("db", "upgrade") == 0
    assert "has revision" in capsys.readouterr().out
    assert ExperimentTracker(studies.DATABASE).verify() == []
    assert len(Path(studies.DATABASE).read_bytes()) == len(before)


@pytest.mark.parametrize("verb", ["backup", "rebuild"])
def test_a_server_s_database_is_left_to_its_own_tools(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert main_exit("db", verb, "--database", "postgresql://host/name") == 2
    assert "pg_dump" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("doctor",), ("db", "backup"), ("db", "upgrade"), ("db", "rebuild")])
def test_where_there_is_no_store_none_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main_exit(*arguments) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_message_and_no_traceback(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "plots/a.png")

    monkeypatch.setattr("lorastudy.report.read_report", full)
    assert main_exit("report") == 2
    assert capsys.readouterr().err == (
        "error: plots/a.png: the disk is full (No space left on device). What was stored before is kept. Mend the disk, "
        "then run the same command again: it goes on with what is missing\n"
    )


def test_an_error_that_is_not_the_disk_s_keeps_its_traceback(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "template")

    monkeypatch.setattr("lorastudy.report.read_report", missing)
    with pytest.raises(FileNotFoundError):
        main(["report"])
