"""Suites that break one rule each, and near misses: YAML as a user writes it, and beside it what its run would record.

`LS102.trigger.yaml` is the suite. `LS102.trigger.measured.yaml`, where a rule needs it, says by arm what became known:
losses by seed (then the study has run), sizes, leaks, the environment.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lorastudy.lint.case import ArmFacts, Case, planned_case
from lorastudy.protocol.records import DataSummary, Environment, RowsRead, TrivialScore
from lorastudy.stats.study import split_studies
from lorastudy.stats.trivial import against_trivial
from lorastudy.store.views import ExperimentResult, ScoreValue
from lorastudy.suite.rate_search import design
from lorastudy.suite.suite_file import load_suite

SUITES = Path(__file__).parent / "suites"
_FACTS = {
    "trainable_parameters": "num_trainable_parameters",
    "completion_tokens": "num_completion_tokens",
    "train_rows": "num_train_rows",
    "test_rows": "num_test_rows",
    "published_rates": "published_rates",
    "leaked_rows": "num_leaked_rows",
    "known_prompts": "num_known_prompts",
    "tokenizer": "tokenizer",
    "modules_digest": "modules_digest",
    "modules": "modules",
}


def case_of(name: str) -> Case:
    """The case of one of the suites, run if the file beside it has losses."""
    path = SUITES / f"{name}.yaml"
    suite = load_suite(path)
    experiments = design(suite, fingerprint_dataset=str, fingerprint_base=str).experiments
    beside = path.with_suffix(".measured.yaml")
    arms: Mapping[str, Any] = YAML(typ="safe").load(beside)["arms"] if beside.exists() else {}
    assert set(arms) <= {experiment.arm for experiment in experiments}
    facts = {
        arm: ArmFacts(
            **{_FACTS[key]: value for key, value in known.items() if key in _FACTS},
            rows=tuple(_rows(split, fate) for split, fate in known.get("rows", {}).items()),
        )
        for arm, known in arms.items()
    }
    planned = planned_case(experiments, suite_name=suite.name, facts=facts, question=suite.question)
    results = [_run(result, arms.get(result.arm, {})) for result in planned.study.results]
    (study,) = split_studies(results)
    return Case(
        study=replace(study, tuning_seeds=planned.study.tuning_seeds),
        facts=facts,
        metric=planned.metric,
        margin=planned.margin,
        allowed=planned.margin,
        trivial=against_trivial(study, study.reported_arms, metric=planned.metric, items={}),
    )


def _rows(split: str, fate: Mapping[str, int]) -> RowsRead:
    counts = {
        "num_rows": fate["usable"],
        "num_refused_rows": fate["refused"],
        "num_truncated_rows": fate["cut"],
        "num_asked_rows": fate.get("asked"),
        "num_long_answers": fate.get("long"),
    }
    return RowsRead(
        summary=DataSummary(split=split, format="text", num_tokens=1, num_completion_tokens=1, **counts)
    )


def _run(result: ExperimentResult, known: Mapping[str, Any]) -> ExperimentResult:
    if "losses" not in known:
        return result
    values = dict.fromkeys(("python", "torch", "transformers", "peft", "bitsandbytes", "lorastudy"), "1")
    machine = {"device": "cpu", "device_name": "a CPU", "num_threads": 2}
    loss = ScoreValue(
        value=known["losses"][result.seed], unit="nats", version=known.get("metric_version", 1), num_items=10
    )
    before = (
        {("eval_before", "loss"): replace(loss, value=known["loss_before"])} if "loss_before" in known else {}
    )
    answers = {
        ("eval", metric): replace(loss, value=known[metric][result.seed], version=2)
        for metric in ("exact_match", "same_answer")
        if metric in known
    }
    guessed = [
        TrivialScore(
            predictor="frequencies", split="eval", metric="loss", version=1, unit="nats", value=value
        )
        for value in known.get("guessed", ())
    ]
    return replace(
        result,
        status="completed",
        scores={("eval", "loss"): loss} | before | answers,
        trivial=tuple(guessed),
        settings={**result.settings, **known.get("settings", {})},
        environment=Environment(**{**values, **machine, **known.get("environment", {})}),
    )


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Case]:
    monkeypatch.chdir(tmp_path)  # a folder without defaults of its own
    return case_of
