"""Times predicted from runs that the store holds."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from here import plans_answered_here
from lorastudy.executors import MultiWorkerExecutor
from lorastudy.planning.design import LIBRARIES
from lorastudy.planning.estimate import Machine
from lorastudy.planning.predictions import Predictions, stored_calibration, use_stored_times
from lorastudy.planning.study_plan import StudyPlan, plan_study
from lorastudy.protocol.records import Environment, PackProfile
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite_file import load_suite
from lorastudy.version import installed_version

SETTINGS = Settings(target_modules="qv", quantization="fp32")
MACHINE = Machine(device="cpu", device_name="a processor", num_threads=2, memory_bytes=None)
ENVIRONMENT = Environment(
    python="3", lorastudy="0", device="cpu", device_name="a processor", num_threads=2,
    **{name: installed_version(name) for name in LIBRARIES},
)  # fmt: skip
PROFILE = PackProfile(
    engine="packed", num_arms=4, memory_kind="cpu_resident", peak_memory_bytes=None, median_step_seconds=0.5,
    tokens_per_second=800.0, load_seconds=1.0, train_seconds=10.0, eval_seconds=1.0,
)  # fmt: skip


def result(pack_id: str = "pack-1", **changes: Any) -> ExperimentResult:
    stored = ExperimentResult(
        experiment_id="e", suite_name="s", name="r4", arm="r4", experiment_type="custom", seed=0,
        settings=SETTINGS.model_dump(mode="json"), status="completed", attempt=1, scores={}, pack_id=pack_id,
        pack_profile=PROFILE, environment=ENVIRONMENT,
    )  # fmt: skip
    return replace(stored, **changes)


def calibrated(*results: ExperimentResult, engine: str = "packed"):
    return stored_calibration(results, settings=SETTINGS, machine=MACHINE, engine=engine)


def test_a_stored_pack_is_one_timed_step_whatever_its_number_of_arms() -> None:
    found = calibrated(result(), result(), result())
    (point,) = found.points
    assert (point.num_arms, point.num_tokens, point.seconds) == (4, 400, 0.5)  # 800 tokens a second x 0.5 s
    assert found.step_seconds(200) == pytest.approx(0.25)  # one point: proportional to the tokens
    assert found.source == "stored runs of this machine"


def test_each_pack_counts() -> None:
    smaller = replace(PROFILE, num_arms=1, median_step_seconds=0.2, tokens_per_second=500.0)
    found = calibrated(result(), result("pack-2", pack_profile=smaller))
    assert found.step_seconds(0) == pytest.approx(0.1)  # through (400, 0.5) and (100, 0.2)


@pytest.mark.parametrize(
    "other",
    [
        result(settings=Settings(target_modules="all", quantization="fp32").model_dump(mode="json")),
        result(settings=Settings(target_modules="qv", quantization="bf16").model_dump(mode="json")),
        result(settings=SETTINGS.model_copy(update={"deterministic": False}).model_dump(mode="json")),
        result(environment=replace(ENVIRONMENT, device_name="another")),
        result(environment=replace(ENVIRONMENT, num_threads=1)),
        result(environment=replace(ENVIRONMENT, torch="0.1")),
        result(environment=None),
        result(pack_profile=None),
        result(pack_profile=replace(PROFILE, engine="reference")),
        result(pack_profile=replace(PROFILE, median_step_seconds=None)),
    ],
)
def test_runs_of_other_settings_machines_libraries_or_engines_do_not_count(other: ExperimentResult) -> None:
    assert calibrated(other) is None


def test_two_workers_share_the_threads_and_their_times_are_those_of_such_workers() -> None:
    """The worker that plans has two threads. Each of the two workers that train has one."""
    workers = MultiWorkerExecutor(environments=[{"OMP_NUM_THREADS": "1"}] * 2)
    of_two_workers = result(environment=replace(ENVIRONMENT, num_threads=1))
    of_one_worker = result("pack-2", pack_profile=replace(PROFILE, median_step_seconds=0.9))

    def point(num_threads: int | None) -> float:
        estimator = SimpleNamespace(settings=SETTINGS, machine=MACHINE, engine=SimpleNamespace(name="packed"))
        predicted = Predictions(estimators={"pack": estimator})
        use_stored_times(predicted, [of_two_workers, of_one_worker], num_threads=num_threads)
        (found,) = estimator.stored.points
        return found.seconds

    assert point(workers.num_threads) == 0.5
    assert point(None) == 0.9


@pytest.mark.long
def test_a_plan_takes_the_times_of_every_suite_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(
        "experiment_type: rank_ablation\ndataset_path: lab:facts\neval_dataset_path: lab:facts_eval\n"
        "max_steps: 4\nfactors: {lora_rank: [4, 8]}\n"
    )
    workers = MultiWorkerExecutor(environments=[{"OMP_NUM_THREADS": "3"}] * 2)  # not this process's number
    stored: list[ExperimentResult] = []

    def in_store(status: str | None = None, suite_name: str | None = None) -> list[ExperimentResult]:
        return [each for each in stored if suite_name in {None, each.suite_name}]

    ExperimentTracker(tmp_path / "store.db", writable=True).close()
    with ExperimentTracker(tmp_path / "store.db") as tracker, plans_answered_here():
        monkeypatch.setattr(tracker, "get_all_experiments", in_store)

        def planned() -> StudyPlan:
            return plan_study(load_suite(file), tracker=tracker, executor=workers)

        (estimator,) = planned().predicted.estimators.values()
        assert estimator.stored is None
        here = estimator.machine
        as_here = {"device": here.device, "device_name": here.device_name, "num_threads": 3}
        stored.append(
            result(
                suite_name="another",
                settings=estimator.settings.model_dump(mode="json"),
                environment=replace(ENVIRONMENT, **as_here),
                pack_profile=replace(PROFILE, engine=estimator.engine.name),
            )
        )
        (estimator,) = planned().predicted.estimators.values()
        assert estimator.stored is not None
        assert estimator.stored.source == "stored runs of this machine"
