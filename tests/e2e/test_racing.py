"""A race as a user runs it: the plan, the run, the report, and nothing left to resume."""

import re
from collections.abc import Callable
from typing import Any

import pytest

SUITE = """\
suite_name: races
experiment_type: rank_ablation
base_model: lab
dataset_path: lab:skill
eval_dataset_path: lab:skill_eval
test_fraction: 0.5
max_eval_samples: 60
quantization: fp32
max_steps: 24
per_device_train_batch_size: 16
max_seq_length: 32
lora_alpha: 2r
max_generation_samples: 0
learning_rate: [1e-6, 0.01]
seeds: [0, 1, 2, 3]
racing: true
experiments:
  - {lora_rank: 2}
"""


@pytest.fixture(scope="module")
def folder(make_folder: Callable[[str], Any]) -> Any:
    folder = make_folder("race")
    folder.write("suite.yaml", SUITE)
    return folder


@pytest.fixture(scope="module")
def said(folder: Any) -> str:
    plan = folder.here("lorastudy suite suite.yaml --dry-run").stdout
    assert "8 experiments, 0 of them done; 8 to run" in plan
    assert "racing: after 12.5 %, 25 % and 50 % of the steps" in plan
    assert "never the reference at its best rate" in plan
    return str(folder.here("lorastudy suite suite.yaml").stdout)


def test_rates_that_learn_nothing_are_stopped_and_that_is_no_failure(folder: Any, said: str) -> None:
    assert "4 completed, 0 failed, 0 done before, 0 not run" in said
    assert "stopped by racing, since clearly behind: lr 1e-6 (4 runs)" in said
    assert folder.here("lorastudy status").stdout == "races: 4 completed, 4 stopped by racing\n"


@pytest.mark.usefixtures("said")
def test_nothing_is_left_to_run(folder: Any) -> None:
    assert "nothing to resume" in folder.here("lorastudy resume").stdout
    for again in ("suite suite.yaml", "resume races"):
        assert "0 completed, 0 failed, 4 done before, 0 not run" in folder.here(f"lorastudy {again}").stdout
    assert "; 0 to run in 0 packs" in folder.here("lorastudy suite suite.yaml --dry-run").stdout
    assert folder.here("lorastudy doctor").returncode == 0


@pytest.mark.usefixtures("said")
def test_the_report_tells_who_was_stopped_and_what_that_is_worth(folder: Any) -> None:
    folder.here("lorastudy report --suite-name races")
    text = (folder.path / "RESULTS.md").read_text(encoding="utf-8")
    assert "4 of 8 experiments completed, 4 were stopped by racing." in text
    assert "arms that are clearly behind after 12.5 %, 25 % and 50 % of the steps are stopped" in text
    assert "## Stopped by racing" in text
    assert "The reference at its best rate is never stopped." in text
    # 4 runs of 24 steps and 4 of 3: 108 of 192
    assert "The runs took 108 of the 192 steps of the full grid (56 %)." in text
    assert "stopped by racing after 12.5 % of the steps: its held-out loss is" in text
    assert re.search(r"lr 1e-6 \((untuned, )?stopped by racing\)", text)
    assert "Failures and divergences" not in text
    assert "did not complete" not in text
