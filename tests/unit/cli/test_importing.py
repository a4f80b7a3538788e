"""`lorastudy import` as it is typed."""

import json
from pathlib import Path

import pytest

from lorastudy.cli.main import main

pytestmark = pytest.mark.long

CSV = "rank,lr,seed,loss\n4,1e-3,0,1.5\n8,1e-3,0,1.25\n"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments, expect=0):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        captured = capsys.readouterr()
        assert ended.value.code == expect, captured
        return captured.out if expect == 0 else captured.err

    return run


def test_a_table_twice_and_its_report(run):
    Path("sweep.csv").write_text(CSV)
    command = (
        "import", "sweep.csv", "--column", "lora_rank=rank", "--column", "learning_rate=lr", "--column", "seed=seed",
        "--metric", "loss:lower", "--set", "base_model=org/model",
    )  # fmt: skip
    assert "sweep: 2 results read, 2 new, 0 already there" in run(*command)
    assert "sweep: 2 results read, 0 new, 2 already there" in run(*command)
    assert "sweep: 2 imported from table" in run("status")
    out = run("report", "--suite-name", "sweep", "--output", "SWEEP.md")
    assert out.splitlines()[1:3] == [
        "Imported results: sweep",
        "No verdict is possible: no two arms share six seeds, and the metric is not a",
    ]
    assert out.splitlines()[-2:] == ["wrote SWEEP.md", "wrote SWEEP.html"]
    assert Path("SWEEP.md").read_text().startswith("# Imported results: sweep")


def test_peft_files_of_a_folder(run, peft_files):
    assert "public: 2 results read, 2 new" in run(
        "import", str(peft_files), "--suite-name", "public", "--num-items", "100"
    )
    assert "public: 2 imported from peft method_comparison" in run("status")


@pytest.fixture
def peft_files(tmp_path):
    folder = tmp_path / "peft"
    folder.mkdir()
    for name, right in (("a", 50), ("b", 60)):
        body = {
            "run_info": {
                "created_at": "2026", "experiment_name": name, "peft_config": None,
                "train_config": {
                    "model_id": "org/tiny", "dtype": "float32", "max_seq_length": 8, "batch_size": 1, "max_steps": 1,
                    "seed": 0, "optimizer_type": "AdamW", "optimizer_kwargs": {"lr": 1e-5},
                },
            },
            "train_info": {"status": "success", "metrics": [{"test accuracy": right / 100}]},
            "meta_info": {},
        }  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(body))
    return folder


def test_mistakes_end_with_2_and_one_message(run, peft_files):
    Path("sweep.csv").write_text(CSV)
    assert "no metric is named" in run("import", "sweep.csv", expect=2)
    assert "there is no such file or folder" in run("import", "nowhere.csv", expect=2)
    assert "not both at once" in run("import", "sweep.csv", str(peft_files), expect=2)
    Path("empty").mkdir()
    assert "holds no JSON files" in run("import", "empty", expect=2)
    assert "is not a share of 1319 items" in run("import", str(peft_files), expect=2)
    assert "cannot be a folder's name" in run("import", "sweep.csv", "--suite-name", "a b", expect=2)
    assert not Path("results").exists(), "nothing was written"


def test_own_and_imported_suites_cannot_have_one_name(run, peft_files):
    run("import", str(peft_files), "--suite-name", "study", "--num-items", "100")
    Path("study.yaml").write_text("dataset_path: lab:facts\nfactors: {lora_rank: [2, 4]}\n")
    error = run("suite", "study.yaml", expect=2)
    assert "'study' holds imported results; give the suite another name" in error
