"""The suites of a store that have work left, as a resumed run takes them.

The experiments of most suites are registered in the store. A suite that searches for learning rates also has its design
there, because results decide its next runs. A store of an older version has no design. Such a suite can be
resumed only from its file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorastudy.errors import StudyError
from lorastudy.planning.design import Designer, is_current, missing_of
from lorastudy.planning.missing_scores import lacking, missing_scores
from lorastudy.planning.study_plan import sources_of
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.question import Question
from lorastudy.suite.suite import Suite


@dataclass(frozen=True, kw_only=True)
class UnfinishedSuite:
    """A suite to resume."""

    suite: Suite
    registered: tuple[Experiment, ...] | None = None
    """Its experiments as the store has them; None if they follow from the suite."""


def unfinished_suites(
    tracker: ExperimentTracker, *, database: str, name: str | None, on_skip: Callable[[str], None]
) -> list[UnfinishedSuite]:
    """The suite of this name, finished or not; without a name, all suites with work left.

    `on_skip` gets a line for each suite that only its file can resume.

    Raises:
        StudyError: there is no such suite, only its file can resume it, or its base model or data has changed.
    """
    by_suite: dict[str, list[ExperimentResult]] = {}
    for result in tracker.get_all_experiments():
        by_suite.setdefault(result.suite_name, []).append(result)
    if name is not None and name not in by_suite:
        there = ", ".join(by_suite) or "none"
        raise StudyError(f"{name}: {database} has no suite of this name; it has: {there}")
    questions = {s.suite_name: s.questions[-1].question for s in tracker.get_suites() if s.questions}
    designs = tracker.get_designs()
    found: list[UnfinishedSuite] = []
    for suite_name, results in by_suite.items():
        if name not in {None, suite_name}:
            continue
        question = questions.get(suite_name, Question())
        if not question.tuning_seeds:
            if name is not None or _is_open(results, question):
                found.append(
                    UnfinishedSuite(suite=_plain(results, question), registered=_registered(results))
                )
        elif suite_name in designs:
            suite = Suite.from_json(designs[suite_name])
            _registered(results)  # raises if the sources have changed
            if name is not None or _has_rounds_left(suite, tracker):
                found.append(UnfinishedSuite(suite=suite))
        else:
            message = (
                f"{suite_name} searches for learning rates, and only its file determines the next runs: "
                "lorastudy resume FILE"
            )
            if name is not None:
                raise StudyError(message)
            on_skip(message)
    return found


def _is_open(results: Sequence[ExperimentResult], question: Question) -> bool:
    """Whether something is left to run. A pruned experiment counts only if the suite no longer races."""
    return any(
        (result.environment is not None and not is_current(result.environment))
        or (result.status != "completed" and not (result.was_pruned and question.rungs))
        or lacking(result, question.metrics)
        for result in results
    )


def _has_rounds_left(suite: Suite, tracker: ExperimentTracker) -> bool:
    """Whether the results call for a run that is not done: a round may be over and the next one not begun."""
    designed = Designer(suite=suite).by_now(tracker)
    # Without any score the finals cannot be decided: only failed runs are left, and they count as missing.
    lacks_finals = (
        suite.time_budget_hours is not None and designed.finals is None and bool(designed.standings)
    )
    return (
        lacks_finals
        or bool(missing_of(designed, suite, tracker=tracker))
        or bool(missing_scores(designed.experiments, suite.metrics, tracker=tracker))
    )


def _plain(results: Sequence[ExperimentResult], question: Question) -> Suite:
    """A suite of known experiments: its name and its question, without arms."""
    return Suite(
        name=results[0].suite_name,
        description="",
        experiment_type=results[0].experiment_type,
        path=None,
        arms=(),
        margin=question.margin,
        reference=question.reference,
        rungs=question.rungs,
        primary_metric=question.primary_metric,
        metrics=question.metrics,
    )


def _registered(results: Sequence[ExperimentResult]) -> tuple[Experiment, ...]:
    """The experiments as registered. Their base model and data must not have changed.

    Raises:
        StudyError: a base model or a data set has changed since.
    """
    experiments = tuple(
        Experiment.from_json(
            {
                **{key: getattr(result, key) for key in ("name", "arm", "experiment_type", "seed")},
                "settings": dict(result.settings),
                "sources": dict(result.sources),
            }
        )
        for result in results
    )
    now = sources_of()
    for experiment in experiments:
        for what, fingerprint in vars(now(experiment.settings)).items():
            if fingerprint != getattr(experiment.sources, what):
                raise StudyError(
                    f"{experiment.name}: its {what.replace('_', ' ')} has changed since it started; run its suite file: "
                    "lorastudy suite FILE"
                )
    return experiments
