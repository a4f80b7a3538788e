"""Which experiments the store has results for: done, pruned by racing, or scored for a search.

Numbers depend on library versions, so a result made under other versions than the installed ones counts as missing.
"""

from collections.abc import Collection, Sequence
from importlib.metadata import version
from pathlib import Path

from lorastudy.protocol.records import Environment
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.question import PrimaryMetric
from lorastudy.suite.rate_search import DIVERGED, Design, Merit
from lorastudy.suite.suite import Suite

#: Libraries whose versions must match the installed ones for a stored result to count.
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def is_new(store: str | Path) -> bool:
    """Whether the store does not exist yet. A crash while creating it leaves an empty file, which counts as new."""
    if "://" in str(store):
        return False
    file = Path(store)
    return not file.exists() or file.stat().st_size == 0


def is_current(environment: Environment | None) -> bool:
    """Whether a run in this environment had the installed versions of all `LIBRARIES`."""
    if environment is None:
        return False
    return all(getattr(environment, name) == version(name) for name in LIBRARIES)


def libraries_of_now() -> list[str]:
    """The installed versions of `LIBRARIES`."""
    return [version(name) for name in LIBRARIES]


def not_done(
    experiments: Sequence[Experiment], *, tracker: ExperimentTracker, searching: Collection[str] = ()
) -> list[Experiment]:
    """The experiments without a completed run under the installed libraries.

    An experiment in `searching` counts as done if its newest run has a merit: it completed, or diverged.
    """
    ids = [experiment.id for experiment in experiments]
    completed = tracker.completed([key for key in ids if key not in searching])
    done = {key for key, environment in completed.items() if is_current(environment)}
    done |= {
        key
        for key, result in tracker.get_results([key for key in ids if key in searching]).items()
        if (result.status == "completed" or result.failure_kind == "diverged")
        and is_current(result.environment)
    }
    return [experiment for experiment in experiments if experiment.id not in done]


def missing_of(design: Design, suite: Suite, *, tracker: ExperimentTracker | None) -> Sequence[Experiment]:
    """What of a design has no result yet and was not stopped by racing; without a store all of it."""
    if tracker is None:
        return design.experiments
    missing = not_done(design.experiments, tracker=tracker, searching=design.tuning)
    stopped = pruned(missing, tracker=tracker) if suite.rungs else frozenset()
    return [experiment for experiment in missing if experiment.id not in stopped]


def pruned(experiments: Sequence[Experiment], *, tracker: ExperimentTracker) -> frozenset[str]:
    """The experiments that a race stopped under the libraries of now, whichever suite raced them."""
    found = tracker.get_results([experiment.id for experiment in experiments]).values()
    return frozenset(
        result.experiment_id for result in found if result.was_pruned and is_current(result.environment)
    )


def current_results(
    experiments: Sequence[Experiment], *, suite_name: str, tracker: ExperimentTracker
) -> list[ExperimentResult]:
    """The results of the experiments, under this suite's names, made under the installed libraries."""
    ids = {experiment.id for experiment in experiments}
    found = tracker.get_all_experiments(suite_name=suite_name)
    return [each for each in found if each.experiment_id in ids and is_current(each.environment)]


def merits_of(
    experiment_ids: Collection[str], *, tracker: ExperimentTracker, metric: PrimaryMetric
) -> dict[str, Merit | None]:
    """The merits of the experiments that ended under the installed libraries."""
    results = tracker.get_results(sorted(experiment_ids))
    return {
        experiment_id: merit(result, metric)
        for experiment_id, result in results.items()
        if has_ended(result) and is_current(result.environment)
    }


def has_ended(result: ExperimentResult) -> bool:
    """Whether the run completed or failed."""
    return result.status in {"completed", "failed"}


def merit(result: ExperimentResult, metric: PrimaryMetric) -> Merit | None:
    """The merit on the held-out rows, never on the test rows; None if the run failed without diverging."""
    if result.failure_kind == "diverged":
        return DIVERGED
    if result.status != "completed":
        return None
    value, loss = (result.scores["eval", name].value for name in (metric, "loss"))
    return (value if metric == "loss" else -value, loss)
