"""The workflow of the specification, typed as it stands there, on a small model and a local file.

The tests share one folder and build on each other, as the steps do for a user: `study` has done them all. Where the
machine allows it, the steps run without any network, not even the loopback; everywhere, no step may open a socket.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lorastudy.store import ExperimentTracker

SAMPLE = "data/people_40_sample.jsonl"
CHECKPOINT = "output/rank_ablation_r16/final_model"
EVALUATE = f"evaluate_model.py --checkpoint {CHECKPOINT} --base-model model"

#: A network of the user's own, with one interface that is down. The kernel may allow it without privileges.
WITHOUT_NETWORK = ("unshare", "--map-root-user", "--net")

#: Every Python process imports this as it starts, workers included: it notes each socket that is no Unix socket.
WATCH = """\
import os, socket
_real = socket.socket.__init__
def _watched(self, family=-1, *rest, **options):
    if family in (socket.AF_INET, socket.AF_INET6):
        with open(os.environ["SOCKETS_SEEN"], "a") as file:
            import traceback
            file.write("".join(traceback.format_stack()) + "---\\n")
    _real(self, family, *rest, **options)
socket.socket.__init__ = _watched
"""

# The format of the specification, and what keeps the runs short and exact.
SUITE = f"""\
suite_name: "my_experiment_suite"
base_model: "model"
dataset_path: "{SAMPLE}"
num_train_epochs: 2
per_device_train_batch_size: 4
max_seq_length: 512

experiment_type: rank_ablation
quantization: fp32
learning_rate: 1e-2
max_generation_samples: 2
max_new_tokens: 3

experiments:
  - name: "exp1"
    lora_rank: 16
  - name: "exp2"
    lora_rank: 32
"""


@cache
def reason_against() -> str | None:
    """Why no process can be cut off from the network here."""
    if shutil.which(WITHOUT_NETWORK[0]) is None:
        return "unshare is not installed"
    done = subprocess.run([*WITHOUT_NETWORK, "true"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"no network namespace can be made here: {done.stderr.strip()}"


@pytest.fixture(scope="module")
def folder(make_folder: Callable[[str], Any]) -> Any:
    """A folder whose commands are watched. Nothing says that there is no network: a command must find out, or not ask."""
    folder = make_folder("study")
    folder.write("suite.yaml", SUITE)
    folder.write("sitecustomize.py", WATCH)
    return replace(
        folder,
        wrapper=() if reason_against() else WITHOUT_NETWORK,
        environment={
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "PYTHONPATH": os.pathsep.join([str(folder.path), os.environ.get("PYTHONPATH", "")]),
            "SOCKETS_SEEN": str(folder.path / "sockets"),
        },
    )


@pytest.fixture(scope="module")
def study(folder: Any) -> Any:
    """The folder after all steps; what each printed is under the step's name in `printed`."""
    steps = {
        "prepare": "prepare_dataset.py --dataset people.csv --num-samples 40 --train-test-split 0.9",
        "single": f"run_single_experiment.py --experiment-type rank_ablation --lora-rank 16 --dataset {SAMPLE} "
        "--base-model model --num-epochs 1",
        "dry_run": "run_experiment_suite.py --suite suite.yaml --dry-run",
        "suite": "run_experiment_suite.py --suite suite.yaml --continue-on-error",
        "again": "run_experiment_suite.py --suite suite.yaml",
        "report": "generate_report.py",
        "filtered": "generate_report.py --experiment-type rank_ablation --output reports/my_analysis.md",
        "scores": f"{EVALUATE} --dataset data/people_test.jsonl --profile-inference --max-new-tokens 3 --output scores.json",
        "answers": f"{EVALUATE} --benchmark-only --max-new-tokens 4",
    }
    printed = {}
    for name, step in steps.items():
        printed[name] = folder.run(f"python scripts/{step}").stdout
        if name == "dry_run":
            assert "my_experiment_suite" not in tracked_suites(folder.path), "a dry run writes nothing"
    return folder, printed


def tracked_suites(path: Path) -> list[str]:
    with ExperimentTracker(path / "results/experiments.db") as tracker:
        return [suite.suite_name for suite in tracker.get_suites()]


def test_prepare_writes_the_sample_and_a_split_and_shows_an_example(study: Any) -> None:
    folder, printed = study
    lines = {name: (folder.path / "data" / name).read_text().splitlines() for name in ("people_40_sample.jsonl", "people_train.jsonl", "people_test.jsonl")}  # fmt: skip
    assert len(lines["people_40_sample.jsonl"]) == 40
    assert set(lines["people_train.jsonl"]).isdisjoint(lines["people_test.jsonl"])
    assert len(lines["people_train.jsonl"]) + len(lines["people_test.jsonl"]) == 40
    assert "[trained]" in printed["prepare"]


def test_a_single_experiment_leaves_an_adapter_under_its_name(study: Any) -> None:
    folder, printed = study
    assert f"adapter: {CHECKPOINT}" in printed["single"]
    assert {path.name for path in (folder.path / CHECKPOINT).iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_a_dry_run_shows_what_would_run(study: Any) -> None:
    printed = study[1]["dry_run"]
    assert "2 to run in 1 pack." in printed
    for label in ("r=16, seed 0", "r=32, seed 0"):
        assert re.search(rf"^  {label} .*  exp-[0-9a-f]{{16}}$", printed, re.MULTILINE)


def test_a_suite_trains_and_scores_its_experiments(study: Any) -> None:
    folder, printed = study
    assert "2 completed, 0 failed" in printed["suite"]
    with ExperimentTracker(folder.path / "results/experiments.db") as tracker:
        results = tracker.get_all_experiments(suite_name="my_experiment_suite")
        losses = [step.loss for step in tracker.get_steps(results[0].experiment_id)]
    assert [result.name for result in results] == ["exp1", "exp2"]
    for result in results:
        assert result.status == "completed"
        after, before = (result.scores[split, "loss"].value for split in ("eval", "eval_before"))
        assert after < before
        assert ("eval", "exact_match") in result.scores
        assert result.profile is not None
        assert result.profile.num_trainable_parameters > 0
    # Two epochs of what the split leaves for training, in batches of four that cross from one into the next.
    assert len(losses) == results[0].num_steps == math.ceil(2 * num_trained_rows(results[0]) / 4)


def num_trained_rows(result: Any) -> int:
    (train,) = [summary for summary in result.data if summary.split == "train"]
    return int(train.num_rows)


def test_the_same_suite_again_trains_nothing(study: Any) -> None:
    folder, printed = study
    assert "0 completed, 0 failed, 2 done before" in printed["again"]
    with ExperimentTracker(folder.path / "results/experiments.db") as tracker:
        results = tracker.get_all_experiments(suite_name="my_experiment_suite")
    assert {result.attempt for result in results} == {1}


def test_the_report_and_its_plots_are_there(study: Any) -> None:
    folder, _ = study
    text = (folder.path / "RESULTS.md").read_text()
    assert "exp1" in text
    assert (folder.path / "RESULTS.html").is_file()
    assert len(list((folder.path / "results/plots").rglob("*.png"))) >= 5
    filtered = (folder.path / "reports/my_analysis.md").read_text()
    assert "exp2" in filtered


def test_results_can_be_queried_as_the_specification_says(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study[0].path)
    with ExperimentTracker() as tracker:
        completed = tracker.get_all_experiments(status="completed")
        by_type = tracker.get_experiments_by_type("rank_ablation")
        tracker.export_to_json(tmp_path / "my_experiments.json")
    assert len(completed) == len(by_type) == 3
    exported = json.loads((tmp_path / "my_experiments.json").read_text())
    assert len(exported["experiments"]) == 3


def test_evaluate_scores_an_adapter_on_a_data_set_and_profiles_inference(study: Any) -> None:
    folder, printed = study
    assert "perplexity" in printed["scores"]
    assert "first_token_seconds" in printed["scores"]
    result = json.loads((folder.path / "scores.json").read_text())
    scores = {score["metric"]: score["value"] for score in result["scores"]}
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]), rel=1e-6)
    assert result["inference"]["first_token_seconds"] > 0


def test_evaluate_asks_the_benchmark_prompts(study: Any) -> None:
    assert "sky" in study[1]["answers"]


@pytest.mark.skipif(reason_against() is not None, reason=str(reason_against()))
def test_the_steps_have_no_network(study: Any) -> None:
    folder, _ = study
    program = "import socket; socket.create_connection(('127.0.0.1', 9), timeout=2)"
    command = [*folder.wrapper, sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Network is unreachable" in done.stderr


def test_no_command_opens_a_socket(study: Any) -> None:
    """The steps of `study`, evaluations among them, and an export."""
    folder, _ = study
    seen = Path(folder.environment["SOCKETS_SEEN"])
    folder.run("lorastudy export --format csv")
    assert not seen.exists(), seen.read_text()
    folder.run('python -c "import socket; socket.socket(socket.AF_INET)"')
    assert seen.exists(), "the watch does not see what it should"
    seen.unlink()


def test_peft_loads_the_published_adapter_and_computes_what_the_packed_engine_computed(study: Any) -> None:
    """Every held-out row's loss as it was stored when the arm was still one of a pack."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lorastudy.data.load import train_and_eval
    from lorastudy.data.tokenise import tokenise
    from lorastudy.suite.suite_file import load_suite

    folder, _ = study
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.path)
        settings = load_suite(Path("suite.yaml")).arms[0].settings
        rows = train_and_eval(settings).held_out.read()
    with ExperimentTracker(folder.path / "results/experiments.db") as tracker:
        (result,) = [each for each in tracker.get_all_experiments("completed") if each.name == "exp1"]
        stored, _ = tracker.get_items(result.experiment_id, split="eval", metric="loss")
    assert result.pack_profile is not None
    assert result.pack_profile.engine == "packed"
    assert result.pack_profile.num_arms == 2
    tokenizer = AutoTokenizer.from_pretrained(folder.path / "model")
    base = AutoModelForCausalLM.from_pretrained(folder.path / "model", dtype="float32")
    tokens = tokenise(rows, tokenizer=tokenizer, max_seq_length=512, split="eval").rows
    untrained = [mean_nll(base, row) for row in tokens]
    model = PeftModel.from_pretrained(base, str(folder.path / "output/exp1/final_model")).eval()
    assert [mean_nll(model, row) for row in tokens] == pytest.approx(list(stored), rel=1e-4, abs=1e-5)
    assert untrained != pytest.approx(list(stored), rel=0.05), "the adapter matters"


def mean_nll(model: Any, row: Any) -> float:
    """Mean negative log likelihood of the row's trained tokens, one row at a time, from the logits."""
    import torch

    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        log_probabilities = model(input_ids=ids).logits[0].log_softmax(-1)
    nll = [
        -log_probabilities[position - 1, label].item()
        for position, label in enumerate(row.labels)
        if label != -100
    ]
    return sum(nll) / len(nll)
