"""The suites of the lab: valid, paired, and with enough seeds to show a difference."""

from pathlib import Path

import pytest

from lorastudy import lab
from lorastudy.lab.catalogue import NEW, RELATIONS
from lorastudy.suite.suite import Suite
from lorastudy.suite.suite_file import load_suite


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.chdir(tmp_path)  # no project's defaults
    return load_suite(lab.rank_study())


def test_it_compares_ranks_and_nothing_else(suite: Suite) -> None:
    ranks = [arm.settings.lora_rank for arm in suite.arms]
    assert ranks == [1, 2, 4, 8, 16]
    assert {arm.settings.model_copy(update={"lora_rank": 1}) for arm in suite.arms} == {
        suite.arms[0].settings
    }
    assert suite.experiment_type == "rank_ablation"


def test_every_arm_has_the_six_seeds_that_five_per_cent_needs(suite: Suite) -> None:
    assert {arm.seeds for arm in suite.arms} == {(0, 1, 2, 3, 4, 5)}


def test_it_reads_the_lab_and_asks_every_question(suite: Suite) -> None:
    settings = suite.arms[0].settings
    sources = (settings.dataset_path, settings.eval_dataset_path, settings.forgetting_dataset_path)
    assert settings.base_model == "lab"
    assert sources == ("lab:facts", "lab:facts_eval", "lab:old_facts")
    assert settings.max_generation_samples == len(NEW) * len(RELATIONS)


def test_what_it_says_of_the_facts_is_so(suite: Suite) -> None:
    assert f"{len(lab.rows('facts_eval'))} facts about {len(NEW)} new people" in suite.description
    settings = suite.arms[0].settings
    assert settings.max_steps is not None
    rows_seen = settings.max_steps * settings.per_device_train_batch_size
    assert rows_seen / len(lab.rows("facts_eval")) == 40  # "each fact is seen forty times"


def test_the_demo_can_end_in_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates are looked for, a margin is stated, other rows report, and six seeds can show a difference."""
    monkeypatch.chdir(tmp_path)
    demo = load_suite(lab.demo_suite())
    assert all(arm.seeks_rate and arm.settings.has_test_split for arm in demo.arms)
    assert demo.margin is not None
    assert {arm.seeds for arm in demo.arms} == {(0, 1, 2, 3, 4, 5)}
    assert [arm.settings.lora_rank for arm in demo.arms] == [4, 8, 16]
