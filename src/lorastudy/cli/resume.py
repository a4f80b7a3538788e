"""`lorastudy resume`: continue unfinished suites, from the store alone or from a suite file."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorastudy.cli.options import Config, ContinueOnError, Database, OutputDir, RunsDir
from lorastudy.cli.report import say_results
from lorastudy.cli.terminal import say
from lorastudy.errors import StudyError
from lorastudy.places import DATABASE, OUTPUT_DIR, RUNS_DIR

if TYPE_CHECKING:
    from lorastudy.store import ExperimentTracker
    from lorastudy.store.views import ExperimentResult
    from lorastudy.suite.experiment import Experiment
    from lorastudy.suite.question import Question
    from lorastudy.suite.suite import Suite


def resume(
    suite: Annotated[
        str | None,
        typer.Argument(help="A suite's name or file; without it, every suite of the store with work left."),
    ] = None,
    continue_on_error: ContinueOnError = False,
    config: Config = None,
    database: Database = DATABASE,
    runs_dir: RunsDir = RUNS_DIR,
    output_dir: OutputDir = OUTPUT_DIR,
) -> None:
    """Run the missing experiments of unfinished suites. Each pack resumes from its newest intact checkpoint."""
    from lorastudy.cli.running import run_experiments
    from lorastudy.running.phase_runner import RunOptions

    options = RunOptions(runs=runs_dir, output=output_dir, continue_on_error=continue_on_error)
    if suite is not None and (Path(suite).is_file() or Path(suite).suffix in {".yaml", ".yml"}):
        work: list[tuple[Suite, Sequence[Experiment] | None]] = [_of_file(Path(suite), defaults=config)]
    else:
        work = _of_store(suite, database=database)
    if not work:
        say("nothing to resume: no suite of the store has work left")
    for loaded, experiments in work:
        how_many = "" if experiments is None else f": {len(experiments)} experiments"
        say(f"{loaded.name}{how_many}")
        run_experiments(loaded, database=database, options=options, registered=experiments)
        say_results(loaded.name, database=database, output_dir=output_dir)


def _of_file(path: Path, *, defaults: Path | None) -> "tuple[Suite, None]":
    """The suite in the file. Its experiments follow from the file."""
    from lorastudy.suite.suite_file import load_suite

    return load_suite(path, defaults=defaults), None


def _of_store(name: str | None, *, database: str) -> "list[tuple[Suite, Sequence[Experiment] | None]]":
    """The suite of this name, or all suites with work left, from the store.

    The next runs of a suite that searches learning rates follow from its design. A store of an older version has no
    design. Such a suite is left out with a note, because only its file determines the next runs.

    Raises:
        StudyError: there is no such suite, or its base model or data has changed.
    """
    from lorastudy.store import ExperimentTracker
    from lorastudy.suite.question import Question
    from lorastudy.suite.suite import Suite

    with ExperimentTracker(database) as tracker:
        by_suite: dict[str, list[ExperimentResult]] = {}
        for result in tracker.get_all_experiments():
            by_suite.setdefault(result.suite_name, []).append(result)
        questions = {s.suite_name: s.questions[-1].question for s in tracker.get_suites() if s.questions}
        seeking = {suite_name for suite_name, question in questions.items() if question.tuning_seeds}
        designs = {each: Suite.from_json(design) for each, design in tracker.get_designs().items()}
        if name is not None and name not in by_suite:
            there = ", ".join(by_suite) or "none"
            raise StudyError(f"{name}: {database} has no suite of this name; it has: {there}")
        work: list[tuple[Suite, Sequence[Experiment] | None]] = []
        for each, results in by_suite.items():
            if name not in {None, each}:
                continue
            if each not in seeking:
                question = questions.get(each, Question())
                if name is not None or _is_open(results, question):
                    work.append((_plain(results, question), _experiments(results)))
            elif each in designs:
                _experiments(results)  # raises if the sources have changed
                if name is not None or _has_rounds_left(designs[each], tracker):
                    work.append((designs[each], None))
            else:
                _say_that_the_file_is_needed(each, is_named=name is not None)
    return work


def _plain(results: "Sequence[ExperimentResult]", question: "Question") -> "Suite":
    """A suite of known experiments: its name and its question, without arms."""
    from lorastudy.suite.suite import Suite

    return Suite(
        name=results[0].suite_name,
        description="",
        experiment_type=results[0].experiment_type,
        path=None,
        arms=(),
        margin=question.margin,
        reference=question.reference,
        rungs=question.rungs,
    )


def _say_that_the_file_is_needed(suite_name: str, *, is_named: bool) -> None:
    message = f"{suite_name} searches for learning rates, and only its file determines the next runs: lorastudy resume FILE"
    if is_named:
        raise StudyError(message)
    say(f"note: {message}", file=sys.stderr)


def _is_open(results: "Sequence[ExperimentResult]", question: "Question") -> bool:
    """Whether something is left to run. A pruned experiment counts only if the suite no longer races."""
    from lorastudy.planning.design import is_current

    return any(
        (result.environment is not None and not is_current(result.environment))
        or (result.status != "completed" and not (result.was_pruned and question.rungs))
        for result in results
    )


def _has_rounds_left(suite: "Suite", tracker: "ExperimentTracker") -> bool:
    """Whether the results call for a run that is not done: a round may be over and the next one not begun."""
    from lorastudy.planning.design import Designer, missing_of

    return bool(missing_of(Designer(suite=suite).by_now(tracker), suite, tracker=tracker))


def _experiments(results: "Sequence[ExperimentResult]") -> "list[Experiment]":
    """The experiments as registered. Their base model and data must not have changed.

    Raises:
        StudyError: a base model or a data set has changed since.
    """
    from lorastudy.planning.study_plan import sources_of
    from lorastudy.suite.experiment import Experiment

    experiments = [
        Experiment.from_json(
            {
                **{key: getattr(result, key) for key in ("name", "arm", "experiment_type", "seed")},
                "settings": dict(result.settings),
                "sources": dict(result.sources),
            }
        )
        for result in results
    ]
    now = sources_of()
    for experiment in experiments:
        for what, fingerprint in vars(now(experiment.settings)).items():
            if fingerprint != getattr(experiment.sources, what):
                raise StudyError(
                    f"{experiment.name}: its {what.replace('_', ' ')} has changed since it started; run its suite file: "
                    "lorastudy suite FILE"
                )
    return experiments
