"""The README's tables of GPU memory, and the predictions behind them: a measured case takes a predicted one's place."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import documents
from benchmarks.gpu_memory import memory_cases, rows_of, table_cases
from benchmarks.memory_error import scored_on_gpu
from benchmarks.memory_predictions import CUDA, RESULTS, Case, Predictor

pytestmark = pytest.mark.long

GIB = 1024**3


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(documents.ROOT / "docs"))
    import memory_tables

    return memory_tables


@pytest.fixture
def root(tmp_path):
    """A copy of what the tables are made from, without anything measured."""
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    shutil.copy(RESULTS, tmp_path / "benchmarks/results")
    return tmp_path


def entry(case, *, training, inference, **options):
    return {
        "id": case.id, "case": asdict(case) | {"targets": list(case.targets)}, "memory_kind": "cuda_allocated",
        "num_labels": 300, "base_bytes": 2 * GIB, "ready_bytes": int(2.1 * GIB),
        "training_peak_bytes": training, "inference_peak_bytes": inference, **options,
    }  # fmt: skip


def measured(root, name, entries, **head):
    body = {"made_at": "2026-01-01", "device": "a GPU", "versions": {"torch": "2"}, "memory": entries, **head}
    (root / "benchmarks/results" / name).write_text(json.dumps(body))
    return body


def shown(tables, root):
    from lorastudy.report.markdown import render_markdown

    return render_markdown(tables.memory_blocks(root), output=Path("README.md"), plots=Path())


def test_every_case_of_the_tables_is_predicted_and_measured():
    predicted = [each["id"] for each in json.loads(RESULTS.read_text())["memory"]]
    assert predicted == [case.id for case in table_cases()]
    cases = [case.id for case in memory_cases()]
    assert set(predicted) <= set(cases)
    assert len(set(cases)) == len(cases)


def test_until_something_is_measured_all_of_it_is_called_predicted(tables, root):
    text = shown(tables, root)
    assert text.count("| predicted |") == 5
    assert text.count(" GiB, predicted") == 6
    assert "not measured yet" in text
    assert tables.COMMAND in text
    assert "| measured" not in text


def test_a_measured_case_takes_the_place_of_the_predicted_one(tables, root):
    rank_4, *_ = table_cases()
    measured(root, "gpu.json", [entry(rank_4, training=5 * GIB, inference=3 * GIB)])
    text = shown(tables, root)
    assert "| 4 | 5.00 GiB | 3.00 GiB | measured |" in text
    assert text.count("| predicted |") == 4
    assert "measured on a GPU" in text
    # a newer file counts; one of a trial, of a CPU, or of another length does not
    measured(root, "newer.json", [entry(rank_4, training=6 * GIB, inference=3 * GIB)], made_at="2026-02-01")
    trial = [entry(rank_4, training=7 * GIB, inference=3 * GIB)]
    measured(root, "trial.json", trial, made_at="2026-03-01", smoke=True)
    on_cpu = entry(rank_4, training=8 * GIB, inference=GIB, memory_kind="cpu_resident")
    longer = entry(rank_4, training=9 * GIB, inference=GIB)
    longer["case"] = longer["case"] | {"length": 1024}
    measured(root, "others.json", [on_cpu, longer], made_at="2026-04-01")
    assert "| 4 | 6.00 GiB | 3.00 GiB | measured |" in shown(tables, root)


def test_a_case_is_predicted_with_the_labels_of_its_rows():
    (gpu_case, *_) = table_cases()
    case = Case.of(gpu_case)
    assert case.batch.row_lengths == (512,)
    rows = rows_of(gpu_case, vocabulary=51200)
    assert case.batch.num_labels == 512 - rows[0].labels.count(-100)


def test_what_a_gpu_measured_is_scored_like_any_other_case(root):
    (gpu_case, *_) = table_cases()
    body = measured(root, "gpu.json", [entry(gpu_case, training=4 * GIB, inference=2 * GIB)])
    (result,) = scored_on_gpu(body)["results"]
    assert result["measured"]["peak"] == 4 * GIB
    assert result["measured"]["base"] == 2 * GIB
    case = Case.of(gpu_case)
    # Labels are those that the measurement counted, not those of the case.
    assert case.batch.num_labels != 300
    asked = replace(case, batch=replace(case.batch, num_labels=300))
    assert result["predicted"]["peak"] == Predictor(CUDA).predict(asked).terms.total
    assert result["error"] == pytest.approx(result["predicted"]["peak"] / (4 * GIB) - 1)
