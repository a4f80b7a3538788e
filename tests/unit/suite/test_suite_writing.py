"""A suite that is written as a file asks what it asked: the same question, the same experiments."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorastudy.suite.question import Margin
from lorastudy.suite.rate_search import design, foreseen
from lorastudy.suite.suite import Suite
from lorastudy.suite.suite_file import load_suite, suite_yaml

READY = sorted((Path(__file__).parents[3] / "configs/experiments").glob("*.yaml"))

PLAIN = """\
suite_name: plain
description: |
  Two lines: with a colon,
  and "quotes".
dataset_path: rows.jsonl
quantization: fp32
experiments:
  - {name: small, lora_rank: 2}
  - {name: "1e3", lora_rank: 4, seeds: [3, 4], max_steps: 20, target_modules: [up_proj, q_proj]}
"""
AUTO = """\
experiment_type: rank_ablation
dataset_path: rows.jsonl
eval_dataset_path: rows.jsonl
learning_rate: auto
margin: 2.5%
reference: rank_ablation_r4
lora_alpha: 2r
seeds: [0, 1, 2, 5, 6, 7]
factors: {lora_rank: [1, 4]}
"""
TIMED = AUTO + "time_budget_hours: 1.5\n"
OWN_TUNING_SEEDS = AUTO + "tuning_seeds: [8, 9, 10]\nprimary_metric: loss\n"
ONE_ARM = "dataset_path: rows.jsonl\nexperiments: [{lora_rank: 4}]\n"
RATES = """\
dataset_path: rows.jsonl
learning_rate: [1e-5, 3e-4, 0.002]
primary_metric: token_accuracy
margin: 0.02
seeds: [0, 1]
experiments: [{name: a, lora_rank: 1}, {name: b, lora_rank: 4}, {name: c, lora_rank: 4, learning_rate: 0.1}]
"""
CROSSED_RATES = "dataset_path: rows.jsonl\nfactors: {learning_rate: [1e-4, 1e-3], lora_rank: [1, 4]}\n"
RACING = """\
dataset_path: rows.jsonl
max_steps: 40
racing: [0.25, 0.5]
margin: 10%
learning_rate: [1e-4, 1e-3]
seeds: [0, 1, 2]
factors: {lora_rank: [1, 4], target_modules: [qv, mlp]}
"""
SUITES = {
    "plain": PLAIN, "auto": AUTO, "own tuning seeds": OWN_TUNING_SEEDS, "one arm": ONE_ARM, "rates": RATES,
    "crossed rates": CROSSED_RATES, "racing": RACING, "a time budget": TIMED,
}  # fmt: skip


def asked(suite: Suite) -> tuple[object, ...]:
    """What makes it the study that it is."""
    known = {"fingerprint_dataset": str, "fingerprint_base": str, "num_steps": lambda settings: 100}
    first = [(e.id, e.name) for e in design(suite, **known).experiments]
    return (
        first, [e.id for e in foreseen(suite, **known)], suite.question.id, suite.question, suite.experiment_type,
        suite.name, suite.description, [arm.seeks_rate for arm in suite.arms],
    )  # fmt: skip


def as_stored(suite: Suite) -> Suite:
    return Suite.from_json(json.loads(json.dumps(suite.to_json())))


@pytest.mark.parametrize("text", SUITES.values(), ids=SUITES.keys())
def test_what_is_written_asks_the_same(write: Callable[[str], Path], text: str) -> None:
    suite = load_suite(write(text))
    printed = suite_yaml(as_stored(suite))
    assert asked(load_suite(write(printed))) == asked(replace(suite, path=None))
    assert ("learning_rate: auto" in printed) == any(arm.seeks_rate for arm in suite.arms)


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_every_ready_suite_can_be_written_again(
    path: Path, write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorastudy.suite.checks.source_problem", lambda key, value: None)
    suite = load_suite(path)
    assert load_suite(write(suite_yaml(as_stored(suite)))).to_json() == suite.to_json()


def test_a_key_that_only_defaults_may_hold_does_not_make_the_file_refused(
    write: Callable[[str], Path], folder: Path
) -> None:
    (folder / "configs").mkdir()
    (folder / "configs/default_config.yaml").write_text("eval_fraction: 0.3\n")
    suite = load_suite(
        write("dataset_path: rows.jsonl\neval_dataset_path: rows.jsonl\nexperiments: [{}, {lora_rank: 2}]\n")
    )
    assert asked(load_suite(write(suite_yaml(suite)))) == asked(suite)


@given(st.floats(min_value=1e-9, max_value=0.999))
def test_a_margin_comes_back_to_the_same_number(amount: float) -> None:
    number = Margin(amount=amount)
    assert Margin.parse(number.as_written()) == number
    share = Margin.parse(f"{100 * amount:.12f}%") if 100 * amount > 1e-12 else Margin.parse("2%")
    assert Margin.parse(share.as_written()) == share


def test_a_share_is_written_as_one_writes_it() -> None:
    assert Margin(amount=0.07, is_share=True).as_written() == "7%"
    assert Margin.parse("2.5%").as_written() == "2.5%"
