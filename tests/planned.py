"""Plans of experiments that no suite file names, as of a suite that is taken up from its store, and running them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorastudy.planning.design import Designer
from lorastudy.planning.study_plan import StudyPlan
from lorastudy.running.phase_runner import Callbacks, RunOptions
from lorastudy.running.study import StudyOutcome, run_study
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import Suite


def experiments(*names: str, **settings: object) -> list[Experiment]:
    """One with each name; their ranks differ, so they train together and are not the same."""
    return [
        Experiment(
            name=name, arm=name, experiment_type="custom", seed=0,
            settings=Settings.model_validate({"lora_rank": ord(name[0]) - ord("a") + 1, **settings}),
            sources=Sources(base_model="base", dataset="rows"),
        )
        for name in names
    ]  # fmt: skip


def plan_of(
    experiments: Sequence[Experiment], *, suite_name: str, executor: Any, rungs: tuple[float, ...] = ()
) -> StudyPlan:
    """The plan for this executor; nothing is predicted, and all is missing."""
    suite = Suite(name=suite_name, description="", experiment_type="custom", path=None, arms=(), rungs=rungs)
    return planned(Designer(suite=suite, registered=tuple(experiments)), executor=executor)


def planned(designer: Designer, *, executor: Any) -> StudyPlan:
    """The plan of what the designer asks for first."""
    design = designer.design()
    return StudyPlan(
        suite=designer.suite,
        designer=designer,
        design=design,
        missing=design.experiments,
        num_packs_at_once=executor.num_packs_at_once,
        hands_over=executor.hands_over,
    )


def options_in(folder: Path, *, continue_on_error: bool = False) -> RunOptions:
    """Run folders and adapters in this folder."""
    return RunOptions(runs=folder / "runs", output=folder / "output", continue_on_error=continue_on_error)


def run_experiments(
    experiments: Sequence[Experiment],
    *,
    suite_name: str,
    tracker: ExperimentTracker,
    executor: Any,
    options: RunOptions,
    rungs: tuple[float, ...] = (),
    on_event: Callable[..., None] = lambda *_: None,
    is_leaving: Callable[[], bool] = lambda: False,
) -> StudyOutcome:
    """Run what is missing of these experiments."""
    return run_study(
        plan_of(experiments, suite_name=suite_name, executor=executor, rungs=rungs),
        tracker=tracker,
        executor=executor,
        options=options,
        callbacks=Callbacks(on_event=on_event, is_leaving=is_leaving),
    )
