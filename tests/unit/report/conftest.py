"""Studies as a store would give them, from arithmetic that the tests can repeat."""

import contextlib
import math
import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from lorastudy.protocol.records import ArmProfile, DataSummary, Environment
from lorastudy.report.write import write_report
from lorastudy.store.views import ExperimentResult, ScoreValue, StepRow, SuiteSummary
from lorastudy.suite.settings import Settings

ENVIRONMENT = Environment(
    python="3.11.9",
    torch="2.13.0",
    transformers="5.17.0",
    peft="0.20.0",
    bitsandbytes="0.49.0",
    lorastudy="0.1.0",
    device="cpu",
    device_name="a CPU",
    num_threads=2,
)
DATA = DataSummary(
    split="train",
    format="alpaca",
    num_rows=240,
    num_refused_rows=1,
    num_truncated_rows=2,
    num_tokens=9600,
    num_completion_tokens=2400,
)
UNITS = {"loss": "nats per token", "perplexity": "", "token_accuracy": "share", "exact_match": "share"}


@dataclass
class FakeTracker:
    """The reads that a report makes."""

    results: list[ExperimentResult] = field(default_factory=list)
    description: str = ""

    def get_imported(self, suite_name=None):
        return []

    def get_decisions(self, suite_name):
        return ()

    def get_designs(self):
        return {}

    def get_suites(self):
        return [
            SuiteSummary(suite_name=name, description=self.description, created_at="", num_experiments=1)
            for name in dict.fromkeys(result.suite_name for result in self.results)
        ]

    def get_all_experiments(self, status=None, suite_name=None):
        return [r for r in self.results if suite_name in (None, r.suite_name) and status in (None, r.status)]

    def get_all_items(self, experiment_ids, *, split, metric):
        """Items around the stored scores: the same pattern for every arm and seed, a little noise of their own."""
        found = {}
        for result in self.results:
            if result.experiment_id in experiment_ids and (split, metric) in result.scores:
                score, noise = result.scores[split, metric], random.Random(result.experiment_id)
                parts = [noise.gauss(0, 0.02) for _ in range(score.num_items)]
                middle = sum(parts) / len(parts)
                values = (score.value + (i % 7 - 3) / 10 + part - middle for i, part in enumerate(parts))
                found[result.experiment_id] = (tuple(values), None)
        return found

    def get_all_steps(self, experiment_ids):
        return {experiment_id: self.get_steps(experiment_id) for experiment_id in experiment_ids}

    def get_steps(self, experiment_id):
        (result,) = [one for one in self.results if one.experiment_id == experiment_id]
        rank = result.settings["lora_rank"]
        return [
            StepRow(
                step=i,
                loss=2.5 * math.exp(-i * rank**0.5 / 90) + 0.02 * result.seed,
                learning_rate=1e-3,
                grad_norm=1.0,
            )
            for i in range(1, 251)
        ]


def a_result(arm: str = "r16", seed: int = 0, **options: Any) -> ExperimentResult:
    """A completed result; `scores` is given as {(split, metric): value}, `settings` as what differs."""
    settings = Settings(**options.pop("settings", {})).model_dump(mode="json")
    suite = options.pop("suite_name", "rank_sweep")
    scores = options.pop("scores", {("eval", "loss"): 1.0})
    values: dict[str, Any] = {
        "experiment_id": f"{suite}/{arm}/{seed}",
        "suite_name": suite,
        "name": f"{arm}_s{seed}",
        "arm": arm,
        "experiment_type": "rank_ablation",
        "seed": seed,
        "settings": settings,
        "status": "completed",
        "engine": "packed",
        "num_steps": 250,
        "train_seconds": 3.0 + 0.1 * seed,
        "scores": {
            key: ScoreValue(value=value, unit=UNITS[key[1]], version=1, num_items=100)
            for key, value in scores.items()
        },
        "environment": ENVIRONMENT,
        "data": (DATA,),
    }
    return ExperimentResult(**(values | options))


def with_profile(
    result: ExperimentResult, *, parameters: int, memory: int | None, step: float | None
) -> ExperimentResult:
    """The result with what it costs."""
    cost = ArmProfile(
        experiment_id=result.experiment_id,
        num_trainable_parameters=parameters,
        num_total_parameters=310_000 + parameters,
        adapter_bytes=4 * parameters + 800,
        memory_kind="cpu_tensors",
        peak_memory_bytes=memory,
        step_seconds=step,
        tokens_per_second=None if step is None else 1200 / step,
        num_timed_steps=12,
        step_quartile_distance_seconds=None if step is None else 0.04 * step,
        step_times_apart=None if step is None else 0.02,
    )
    return replace(result, profile=cost)


def rank_results(*, ranks=(1, 2, 4, 8, 16, 32), num_seeds=6, **options: Any) -> list[ExperimentResult]:
    """A rank ablation in the manner of the lab: loss falls with rank and levels out; forgetting grows."""
    noise = random.Random(7)
    results = []
    for rank in ranks:
        for seed in range(num_seeds):
            loss = 0.05 + 1.6 * math.exp(-rank / 4) + noise.gauss(0, 0.01)
            scores = {
                ("eval", "loss"): loss,
                ("eval", "perplexity"): math.exp(loss),
                ("eval", "token_accuracy"): min(1.0, 1 - loss / 3),
                ("eval", "exact_match"): min(1.0, max(0.0, 1 - loss / 1.4 + noise.gauss(0, 0.015))),
                ("forgetting_before", "loss"): 0.21,
                ("forgetting", "loss"): 0.21 + 0.2 * math.log2(1 + rank) + noise.gauss(0, 0.05),
            }
            settings = {
                "lora_rank": rank,
                "lora_alpha": "2r",
                "quantization": "fp32",
                "max_steps": 250,
            } | options.get("settings", {})
            result = a_result(f"r{rank}", seed, scores=scores, settings=settings)
            memory = 9_000_000 + 60_000 * rank + 500 * seed
            results.append(
                with_profile(result, parameters=2304 * rank, memory=memory, step=0.012 + 0.0001 * rank)
            )
    return results


@pytest.fixture
def make_result():
    return a_result


@pytest.fixture
def add_profile():
    return with_profile


@pytest.fixture(scope="session")
def make_rank_results():
    return rank_results


@pytest.fixture
def rank_study():
    return rank_results()


@pytest.fixture(scope="session")
def make_tracker():
    return FakeTracker


@pytest.fixture(scope="session")
def written(make_rank_results, make_tracker, tmp_path_factory):
    """One whole report, written where a user would write it: the folder and the paths. Read it, never change it."""
    folder = tmp_path_factory.mktemp("report")
    with contextlib.chdir(folder):
        paths = write_report(make_tracker(make_rank_results()))
    return folder, paths
