"""The suite file that a report prints: whoever runs it asks the same question."""

from dataclasses import replace
from pathlib import Path

import pytest

from lorastudy.protocol.records import Incident
from lorastudy.report.document import CodeBlock
from lorastudy.report.numbers import ABSENT
from lorastudy.report.sections.method import reproduce_blocks, suite_of
from lorastudy.report.write import write_report
from lorastudy.stats.study import split_studies
from lorastudy.suite.question import Margin
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import Arm, Suite
from lorastudy.suite.suite_file import load_suite

TRIED = (1e-4, 1e-3, 1e-2)

AUTO = Suite(
    name="rank_sweep",
    description="Which rank?",
    experiment_type="rank_ablation",
    path=None,
    arms=tuple(
        Arm(
            name=None,
            settings=Settings(lora_rank=rank, max_steps=9, test_fraction=0.1),
            seeds=(0, 1),
            seeks_rate=True,
        )
        for rank in (2, 4)
    ),
    margin=Margin(amount=0.1, is_share=True),
    reference="rank_ablation_r4",
    given_tuning_seeds=(7, 8),
)


@pytest.fixture
def searched(make_result):
    """What the store holds of `AUTO`: three rates with the tuning seeds, and the middle one with those that report."""
    results = [
        make_result(
            f"rank_ablation_r{arm.settings.lora_rank}_lr{rate:g}",
            seed,
            settings=arm.settings.model_dump(exclude={"learning_rate"}) | {"learning_rate": rate},
        )
        for arm in AUTO.arms
        for rate in TRIED
        for seed in ((7, 8, 0, 1) if rate == TRIED[1] else (7, 8))
    ]
    (study,) = split_studies(results)
    return replace(study, tuning_seeds=frozenset({7, 8}))


def printed(suite, folder: Path) -> Suite:
    """The file of the report, loaded."""
    (text,) = (
        block.text
        for block in reproduce_blocks(suite, level=2, output=Path("R.md"), same_bits=True)
        if isinstance(block, CodeBlock) and block.language == "yaml"
    )
    path = folder / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    return load_suite(path)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_suite_that_looked_for_its_rates_is_printed_as_it_was_asked(searched, tmp_path):
    again = printed(suite_of(searched, design=AUTO, question=AUTO.question), tmp_path)
    assert again.to_json() == AUTO.to_json()
    assert again.question == AUTO.question
    assert all(arm.seeks_rate for arm in again.arms)


def test_without_a_design_the_search_and_the_question_are_kept_all_the_same(searched, tmp_path):
    again = printed(suite_of(searched, question=AUTO.question), tmp_path)
    assert again.question == AUTO.question
    assert [(arm.name, arm.settings, arm.seeks_rate) for arm in again.arms] == [
        (f"rank_ablation_r{arm.settings.lora_rank}", arm.settings, True) for arm in AUTO.arms
    ]


def test_runs_that_were_asked_for_one_by_one_are_all_in_it(make_result, tmp_path):
    (study,) = split_studies([make_result("a", 0), make_result("b", 1, settings={"lora_rank": 4})])
    last = replace(
        AUTO, arms=(Arm(name=None, settings=Settings(lora_rank=4), seeds=(1,)),), given_tuning_seeds=None
    )
    again = printed(suite_of(study, design=last), tmp_path)
    assert [(arm.name, arm.seeds) for arm in again.arms] == [("b", (1,)), ("a", (0,))]


@pytest.mark.parametrize("algorithms", [None, "deterministic", "fastest"])
def test_equal_bits_are_promised_unless_a_run_used_the_fastest_algorithms(
    algorithms, make_rank_results, make_tracker
):
    """In the section on reproduction and in that on incidents. Runs of earlier versions were made on a CPU."""
    results = make_rank_results(ranks=(4, 8), num_seeds=3)
    environment = replace(results[0].environment, algorithms=algorithms)
    incident = Incident(kind="resumed", message="a pack went on from its checkpoint")
    results[0] = replace(results[0], environment=environment, incidents=(incident,))
    write_report(make_tracker(results))
    page = Path("RESULTS.md").read_text(encoding="utf-8")
    promises = page.count("the same bits")
    if algorithms == "fastest":
        assert promises == 0
        assert page.count("These runs were not deterministic") == 1
        assert page.count("these runs were not deterministic") == 1
        assert any(
            f"| algorithms | {' | '.join(cells)} |" in page
            for cells in ((ABSENT, "fastest"), ("fastest", ABSENT))
        )
    else:
        assert promises == 2
        assert "deterministic: false" not in page
