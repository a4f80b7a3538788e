"""`lorastudy estimate`, as a user reads it."""

from pathlib import Path

import pytest

from lorastudy.cli.main import main

pytestmark = pytest.mark.long

SUITE = """
experiment_type: rank_ablation
dataset_path: lab:facts
eval_dataset_path: lab:facts_eval
max_steps: 4
seeds: [0, 1, 2]
factors: {lora_rank: [4, 8]}
"""


@pytest.mark.parametrize(
    ("arguments", "held"),
    [
        (["--suite", "suite.yaml"], "2 experiments in each of 3 packs on one base"),  # two arms, three seeds
        (["--rank", "4", "--arms", "2"], "2 arms on one base"),
        (["--rank", "4"], "1 arm on one base"),
    ],
)
def test_an_arm_with_a_seed_is_an_experiment(tmp_path, monkeypatch, capsys, arguments, held):
    monkeypatch.chdir(tmp_path)
    Path("suite.yaml").write_text(SUITE, encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["estimate", *arguments])
    assert ended.value.code == 0
    assert f"bf16; {held}, " in capsys.readouterr().out
