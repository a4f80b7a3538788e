"""`lorastudy estimate`, as a user reads it."""

import json
from pathlib import Path

import pytest

from lorastudy.cli.main import main
from lorastudy.planning import study_plan
from lorastudy.store import ExperimentTracker

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
        (["--suite", "suite.yaml"], "6 experiments on one base"),  # two arms, three seeds
        (["--rank", "4", "--arms", "2"], "2 arms on one base"),
        (["--rank", "4"], "1 arm on one base"),
    ],
)
def test_an_arm_with_a_seed_is_an_experiment(tmp_path, monkeypatch, capsys, arguments, held):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # one worker, so packs are not cut for a second one
    Path("suite.yaml").write_text(SUITE, encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["estimate", *arguments])
    assert ended.value.code == 0
    assert f"bf16; {held}, " in capsys.readouterr().out


def test_the_packs_are_those_of_the_dry_run_and_with_vram_all_arms_that_can_train_together(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("suite.yaml").write_text(SUITE + "max_arms_per_pack: 1\n", encoding="utf-8")

    def packs_of(*options):
        with pytest.raises(SystemExit):
            main(["estimate", "--suite", "suite.yaml", "--json", *options])
        (pack,) = json.loads(capsys.readouterr().out)["packs"]
        return pack["num_packs"], pack["num_arms"]

    assert packs_of() == (6, 1)
    with pytest.raises(SystemExit):
        main(["suite", "suite.yaml", "--dry-run"])
    assert capsys.readouterr().out.count("\npack ") == 6
    assert packs_of("--vram", "80GB") == (1, 6)


def test_what_the_store_has_counts_as_done(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("suite.yaml").write_text(SUITE + "max_arms_per_pack: 1\n", encoding="utf-8")
    ExperimentTracker("results/experiments.db", writable=True).close()
    num_done = 0

    def missing_of(design, suite, *, tracker):
        return design.experiments[num_done if tracker is not None else 0 :]

    monkeypatch.setattr(study_plan, "missing_of", missing_of)

    def shown(*options):
        with pytest.raises(SystemExit) as ended:
            main(["estimate", "--suite", "suite.yaml", *options])
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert json.loads(shown("--json"))["packs"][0]["num_packs"] == 6
    num_done = 2
    assert json.loads(shown("--json"))["packs"][0]["num_packs"] == 4
    num_done = 6
    assert json.loads(shown("--json")) == {"packs": []}
    assert shown() == "suite: no experiment is left to run; `--vram` estimates all of them\n"
    assert json.loads(shown("--json", "--vram", "80GB"))["packs"][0]["num_packs"] == 1


def test_a_suite_whose_model_cannot_be_counted_ends_with_the_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("suite.yaml").write_text(SUITE + "target_modules: [absent]\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["estimate", "--suite", "suite.yaml"])
    assert ended.value.code == 2
    assert "target_modules: absent: not in this model" in capsys.readouterr().err


def test_a_default_store_that_cannot_be_read_is_noted_and_a_named_one_is_an_error(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    Path("results/experiments.db").write_bytes(b"no database")
    with pytest.raises(SystemExit) as ended:
        main(["estimate", "--rank", "4"])
    assert ended.value.code == 0
    shown = capsys.readouterr()
    assert "note: nothing counts as done, and times of stored runs are not known: " in shown.err
    assert "predicted peak" in shown.out
    with pytest.raises(SystemExit) as ended:
        main(["estimate", "--rank", "4", "--database", "none.db"])
    assert ended.value.code == 2
