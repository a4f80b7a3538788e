import json
from pathlib import Path

import pytest

from lorastudy.data import hub, prepare
from lorastudy.data.prepare import dataset_name, fetched
from lorastudy.errors import DataError

ROWS = [{"instruction": "i", "input": "", "output": "é"}]


def loader(rows=ROWS, error=None):
    calls = []

    def load_dataset(name, configuration, *, split):
        calls.append((name, configuration, split))
        if error:
            raise error
        return rows

    load_dataset.calls = calls
    return load_dataset


def test_fetch_passes_name_configuration_and_split():
    load_dataset = loader()
    assert list(hub.fetch("tatsu-lab/alpaca", load_dataset=load_dataset)) == ROWS
    list(hub.fetch("openai/gsm8k:main", load_dataset=load_dataset))
    assert load_dataset.calls == [("tatsu-lab/alpaca", None, "train"), ("openai/gsm8k", "main", "train")]


def test_main_writes_rows(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    assert hub.main(["org/name", str(path)], load_dataset=loader()) == 0
    assert path.read_text(encoding="utf-8") == json.dumps(ROWS[0], ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    ("load_dataset", "message"),
    [
        (loader(error=ConnectionError("down")), "lorastudy prepare --dataset FILE"),
        (loader(error=ValueError("Config name\n is missing")), "org/name: Config name is missing"),
        (loader(error=FileNotFoundError("no such data set")), "org/name: no such data set"),
        (loader(rows=[{"image": b"x"}]), "org/name: has columns that are not text"),
    ],
)
def test_main_tells_a_failure_in_one_line(tmp_path, capsys, load_dataset, message):
    assert hub.main(["org/name", str(tmp_path / "rows.jsonl")], load_dataset=load_dataset) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


def test_the_real_library_reads_a_folder_of_json(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    real = datasets.load_dataset
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.json").write_text(json.dumps(ROWS))

    def local(name, configuration, *, split):
        assert name == "tatsu-lab/alpaca"
        cache = str(tmp_path / "cache")
        return real(str(tmp_path / "set"), configuration, split=split, cache_dir=cache)

    monkeypatch.setattr(datasets, "load_dataset", local)
    assert list(hub.fetch("tatsu-lab/alpaca")) == ROWS


def test_without_network_the_other_process_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(DataError) as caught, fetched("alpaca"):
        pass
    message = str(caught.value)
    assert message.startswith("tatsu-lab/alpaca: the hub cannot be reached")
    assert "lorastudy prepare --dataset FILE" in message
    assert "\n" not in message


def test_what_the_other_process_wrote_becomes_rows(monkeypatch):
    def download(hub_id, path):
        path.write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")

    monkeypatch.setattr(prepare, "_download", download)
    with fetched("org/name:config") as rows:
        for _ in range(2):
            (row,) = rows
    assert (row.values, row.where) == (ROWS[0], "org/name:config[0]")


@pytest.mark.parametrize("name", ["missing/rows.csv", "rows.jsonl", "not a hub id"])
def test_a_file_that_is_missing_is_not_looked_for_on_the_hub(name):
    with pytest.raises(DataError, match="no such file"), fetched(name):
        pass


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("alpaca", "alpaca"),
        ("tatsu-lab/alpaca", "alpaca"),
        ("openai/gsm8k:main", "gsm8k_main"),
        ("some/folder/my.rows.csv", "my.rows"),
        ("lab:facts", "lab_facts"),
        ("rows.jsonl.gz", "rows"),
        ("some/folder/part-*.jsonl", "part"),
        ("some/folder/*.jsonl", "folder"),
        ("*.jsonl", "rows"),
    ],
)
def test_name(dataset, name):
    assert dataset_name(dataset) == name
