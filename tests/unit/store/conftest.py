"""A store in a temporary folder, a clock that stands still, and one record of every kind."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lorastudy.protocol.records import (
    ArmProfile,
    ArmStep,
    DataSummary,
    Environment,
    Generation,
    Outcome,
    PackProfile,
    PackStep,
    Record,
    Score,
    TrivialScore,
)
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)

ENVIRONMENT = Environment(
    python="3.11.2",
    torch="2.13.0",
    transformers="5.17.0",
    peft="0.20.0",
    bitsandbytes="0.49.0",
    lorastudy="0.1.0",
    device="cpu",
    device_name="a processor",
    num_threads=2,
)


@pytest.fixture
def make_experiment() -> Callable[..., Experiment]:
    def make(rank: int = 8, seed: int = 0, **names: str) -> Experiment:
        return Experiment(
            name=names.get("name", f"r{rank}_s{seed}"),
            arm=names.get("arm", f"r{rank}"),
            experiment_type=names.get("experiment_type", "rank_ablation"),
            seed=seed,
            settings=Settings(lora_rank=rank, lora_alpha="2r"),
            sources=Sources(base_model="model-1", dataset="data-1"),
        )

    return make


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "results" / "experiments.db"


@pytest.fixture
def tracker(database: Path) -> Iterator[ExperimentTracker]:
    with ExperimentTracker(database, writable=True, clock=lambda: NOON) as tracker:
        yield tracker


@pytest.fixture
def make_records() -> Callable[..., list[Record]]:
    """One record of each kind, and two steps, as a worker writes them for experiments of one pack."""

    def make(*experiment_ids: str) -> list[Record]:
        first = experiment_ids[0]
        return [
            ENVIRONMENT,
            DataSummary(
                split="train",
                format="alpaca",
                num_rows=90,
                num_refused_rows=1,
                num_truncated_rows=2,
                num_tokens=9000,
                num_completion_tokens=4000,
                unused_columns=("url", "id"),
                unseen_fields=(),
            ),
            DataSummary(
                split="eval",
                format="alpaca",
                num_rows=2,
                num_refused_rows=0,
                num_truncated_rows=0,
                num_tokens=200,
                num_completion_tokens=4,
                num_leaked_rows=0,
                num_texts=1,
                num_known_prompts=1,
                num_near_copies=0,
                num_compared_rows=2,
                num_compared_with=80,
                num_known_rows=90,
                split_by="prompt",
                groups=(0, 0),
            ),
            *(_step(number, experiment_ids) for number in (1, 2)),
            Score(
                experiment_id=first,
                split="eval",
                metric="loss",
                version=1,
                unit="nats/token",
                value=1.6,  # (1 * 1.0 + 3 * 1.8) / 4
                items=(1.0, 1.8),
                weights=(1, 3),
            ),
            Score(
                experiment_id=first,
                split="eval",
                metric="exact_match",
                version=1,
                unit="share",
                value=0.5,
                items=(0.0, 1.0),
            ),
            TrivialScore(
                predictor="frequencies",
                split="eval",
                metric="loss",
                version=1,
                unit="nats/token",
                value=1.25,  # (1 * 2.0 + 3 * 1.0) / 4
                items=(2.0, 1.0),
                weights=(1, 3),
            ),
            TrivialScore(
                predictor="constant",
                split="eval",
                metric="exact_match",
                version=1,
                unit="share",
                value=0.5,
                items=(1.0, 0.0),
                answer="4",
            ),
            Generation(experiment_id=first, prompt="2+2=", reference="4", answer="5"),
            ArmProfile(
                experiment_id=first,
                num_trainable_parameters=10,
                num_total_parameters=110,
                adapter_bytes=40,
                memory_kind="cpu_tensors",
                peak_memory_bytes=2**33,
                step_seconds=0.25,
                num_timed_steps=6,
                step_quartile_distance_seconds=0.01,
                step_times_apart=0.02,
                tokens_per_second=None,
            ),
            *(
                Outcome(experiment_id=each, status="completed", adapter_path=f"{each}/final_model")
                for each in experiment_ids
            ),
            PackProfile(
                engine="packed",
                num_arms=len(experiment_ids),
                memory_kind="cpu_resident",
                peak_memory_bytes=None,
                median_step_seconds=0.1,
                tokens_per_second=1000.0,
                load_seconds=1.0,
                train_seconds=30.0,
                eval_seconds=2.0,
            ),
        ]

    return make


def _step(number: int, experiment_ids: tuple[str, ...]) -> PackStep:
    arms = tuple(
        ArmStep(experiment_id=each, loss=0.1 + 0.2 * number, learning_rate=1e-3 / number, grad_norm=None)
        for each in experiment_ids
    )
    return PackStep(step=number, num_steps=2, num_tokens=64, num_completion_tokens=32, seconds=0.1, arms=arms)
