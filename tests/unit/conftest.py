"""Results with just what the analysis reads."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from lorastudy.protocol.records import Environment
from lorastudy.stats.study import Study, split_studies
from lorastudy.store.views import ExperimentResult, ScoreValue
from lorastudy.suite.settings import Settings
from tuned import tuned_study


def environment(**changes: Any) -> Environment:
    values = dict.fromkeys(("python", "torch", "transformers", "peft", "bitsandbytes", "lorastudy"), "1")
    return Environment(**{**values, "device": "cpu", "device_name": "a CPU", "num_threads": 2, **changes})


@cache
def settings_with(**changes: Any) -> dict[str, Any]:
    """Whole settings that differ in these; kept, since a simulation asks for the same ones thousands of times."""
    return Settings(**changes).model_dump(mode="json")


def result(arm: str, seed: int, loss: float | None = 1.0, **options: Any) -> ExperimentResult:
    settings = settings_with(**options.pop("settings", {}))
    version = options.pop("version", 1)
    score = None if loss is None else ScoreValue(value=loss, unit="nats", version=version, num_items=10)
    values: dict[str, Any] = {
        "experiment_id": f"{arm}/{seed}",
        "suite_name": "suite",
        "name": f"{arm}_s{seed}",
        "arm": arm,
        "experiment_type": "own",
        "seed": seed,
        "settings": settings,
        "status": "completed",
        "scores": {} if score is None else {("eval", "loss"): score},
        "environment": environment(),
    }
    return ExperimentResult(**(values | options))


def study(losses: dict[str, list[float]], **options: Any) -> Study:
    """A study with these losses by arm, seeds counted from 0."""
    results = [
        result(arm, seed, loss, **options)
        for arm, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    (made,) = split_studies(results)
    return made


def rank_study(losses: dict[int, list[float]], *, tuned: bool = True) -> Study:
    """A rank ablation with these losses by rank; arms are named r1, r2 and so on, each at a rate that was looked for."""
    results = [
        result(
            f"r{rank}",
            seed,
            loss,
            experiment_type="rank_ablation",
            settings={"lora_rank": rank, "lora_alpha": "2r"},
        )
        for rank, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    return tuned_study(results) if tuned else split_studies(results)[0]


@pytest.fixture
def make_result() -> Callable[..., ExperimentResult]:
    return result


@pytest.fixture
def make_study() -> Callable[..., Study]:
    return study


@pytest.fixture
def make_rank_study() -> Callable[..., Study]:
    return rank_study


@pytest.fixture
def make_environment() -> Callable[..., Environment]:
    return environment
