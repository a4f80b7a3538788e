"""Running a plan from a command: progress, and the outcome."""

import contextlib
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import typer

from lorastudy.cli.console import reading_shown
from lorastudy.cli.terminal import error_shown, failure_shown, say
from lorastudy.executors import Executor, local_executor
from lorastudy.places import DATABASE, OUTPUT_DIR, RUNS_DIR
from lorastudy.planning.design import Designer, existing_store, is_new, missing_of
from lorastudy.planning.plan_summary import forecast, size_line
from lorastudy.planning.study_plan import StudyPlan, plan_study
from lorastudy.report.numbers import listing, names, plural
from lorastudy.running.adapters import published_places
from lorastudy.running.phase_runner import Callbacks, RunOptions
from lorastudy.running.study import StudyOutcome, run_plan
from lorastudy.store import ExperimentTracker
from lorastudy.suite.base_model import is_hub_model
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.labels import experiment_labels, labels_of
from lorastudy.suite.rate_search import Design
from lorastudy.suite.suite import Suite


def planned(
    suite: Suite,
    *,
    tracker: ExperimentTracker | None,
    executor: Executor | None = None,
    registered: Sequence[Experiment] | None = None,
) -> StudyPlan:
    """The suite's plan. On a terminal, shows a bar while data is read, and a line before a wait."""
    with reading_shown():
        return plan_study(
            suite,
            tracker=tracker,
            executor=executor,
            registered=registered,
            on_wait=lambda line: say(line, file=sys.stderr),
        )


def planned_only(suite: Suite, *, database: str) -> StudyPlan:
    """The plan for a dry run. Nothing is written; a store that does not exist yet counts as empty."""
    with existing_store(database) as tracker:
        return planned(suite, tracker=tracker)


def run_experiments(
    suite: Suite,
    *,
    database: str,
    options: RunOptions,
    executor: Executor | None = None,
    registered: Sequence[Experiment] | None = None,
    command: Sequence[str] = (),
) -> Design:
    """Run what is missing, with progress; print the outcome, and return the design that ran.

    Exits with 1 or 2 if an experiment failed; 2 means that you can mend every failure, as with any bad input. A base
    model that is not available, or data that cannot be read, is refused before anything is written. Without an
    executor, workers run on this machine. `registered` are the experiments of a suite that is resumed from the store.
    `command` continues the run if it is stopped, with the flags for its folders; by default `lorastudy resume`.
    """
    from lorastudy.cli.progress import Progress

    to_continue = _with_folders(
        command or ("lorastudy", "resume", suite.name), database=database, options=options
    )
    with contextlib.ExitStack() as opened:
        # An existing store is opened first, because it refuses a second writer at once.
        tracker = None if is_new(database) else opened.enter_context(_writer(database))
        workers = executor or _started_workers(suite, tracker=tracker, registered=registered)
        opened.enter_context(contextlib.closing(workers))
        plan = planned(suite, tracker=tracker, executor=workers, registered=registered)
        progress = Progress(gives_reasons=options.continue_on_error)
        signals = opened.enter_context(StopSignals(resume_command=to_continue))

        def start(_: Executor) -> None:
            for line in (*(f"note: {note}" for note in plan.notes), f"{suite.name}: {size_line(plan)}"):
                say(line, file=sys.stderr)
            for line in forecast(plan):
                say(line, file=sys.stderr)
            signals.executor = workers
            opened.enter_context(progress)

        outcome = run_plan(
            plan,
            database=database,
            tracker=tracker,
            executor=workers,
            options=options,
            callbacks=Callbacks(
                on_open=_say_taken_over,
                on_start=start,
                on_phase=progress.on_phase,
                on_event=progress.on_event,
                is_leaving=signals.is_stopping,
            ),
        )
    experiments = outcome.design.experiments
    _print_outcome(outcome, experiments, was_stopped=signals.is_stopping(), has_raced=bool(suite.rungs))
    _say_moved_adapters(outcome, experiments, suite_name=suite.name, output=options.output)
    if signals.is_stopping() and (outcome.not_run or outcome.left_to_score):
        say(f"to continue: {to_continue}", file=sys.stderr)
        raise typer.Exit(signals.exit_code)
    if outcome.failed or outcome.not_scored:
        raise typer.Exit(exit_code(outcome))
    return outcome.design


def _started_workers(
    suite: Suite, *, tracker: ExperimentTracker | None, registered: Sequence[Experiment] | None
) -> Executor:
    """This machine's executor. If anything is left to run, its workers load their libraries while the suite is planned.

    Workers for a model on the hub start with their first folder: they first need to know whether the hub answers.
    """
    designer = Designer(suite=suite, registered=None if registered is None else tuple(registered))
    design = designer.by_now(tracker)
    workers = local_executor(design.of_every_arm)
    base_models = {experiment.settings.base_model for experiment in design.of_every_arm}
    if missing_of(design, suite, tracker=tracker) and not any(map(is_hub_model, base_models)):
        workers.start_workers(base_models)
    return workers


def exit_code(outcome: StudyOutcome) -> int:
    """0 if nothing failed, 2 if you can mend every failure, as with any bad input; else 1."""
    failed = (*outcome.failed, *outcome.not_scored)
    if not failed:
        return 0
    return 2 if all(end.failure_kind == "user" for end in failed) else 1


def _say_moved_adapters(
    outcome: StudyOutcome, experiments: Sequence[Experiment], *, suite_name: str, output: Path
) -> None:
    """Print which adapters are not in their usual place, and which adapters were replaced.

    An adapter goes elsewhere if its usual place holds another one.
    """
    of_suite = output / suite_name
    adapters = published_places(experiments, suite_name=suite_name, output=output)
    elsewhere = [str(place.parent.relative_to(of_suite)) for place in adapters.elsewhere]
    if elsewhere:
        say(
            f"note: {output}/<name>/final_model holds another experiment's adapter, or files of other origin, so these "
            f"adapters are in {of_suite}/<name>/final_model: {listing(elsewhere)}",
            file=sys.stderr,
        )
    if outcome.replaced:
        places = listing(f"{place} ({experiment_id})" for place, experiment_id in outcome.replaced)
        say(
            f"note: adapters that no suite uses any more were replaced; their run folders keep a copy: {places}",
            file=sys.stderr,
        )


def _writer(database: str) -> ExperimentTracker:
    tracker = ExperimentTracker(database, writable=True)
    _say_taken_over(tracker)
    return tracker


def _say_taken_over(tracker: ExperimentTracker) -> None:
    """Print from which process the store was taken over, if that process ended without releasing it."""
    if tracker.left_behind is not None:
        say(f"note: took over the results store from {tracker.left_behind}, which is gone", file=sys.stderr)


def _with_folders(command: Sequence[str], *, database: str, options: RunOptions) -> str:
    """The command with the flags for the store and the folders that differ from their defaults."""
    flags = {
        "--database": (database, DATABASE),
        "--runs-dir": (str(options.runs), str(RUNS_DIR)),
        "--output-dir": (str(options.output), str(OUTPUT_DIR)),
    }
    given = [part for flag, (value, default) in flags.items() if value != default for part in (flag, value)]
    return shlex.join([*command, *given])


def _print_outcome(
    outcome: StudyOutcome, experiments: Sequence[Experiment], *, was_stopped: bool, has_raced: bool
) -> None:
    design = outcome.design
    labels = experiment_labels(design.of_every_arm, tuning=design.tuning)
    say(
        f"{len(outcome.completed)} completed, {len(outcome.failed)} failed, {len(outcome.done_before)} done before, "
        f"{len(outcome.not_run)} not run"
    )
    if outcome.pruned:
        of_arm, pruned = labels_of(design.of_every_arm, tuning=design.tuning), set(outcome.pruned)
        stopped = dict.fromkeys(of_arm[each.arm] for each in experiments if each.id in pruned)
        say(f"stopped by racing, since clearly behind: {names(stopped)} ({plural(len(pruned), 'run')})")
    elif has_raced and not was_stopped:
        say(
            "racing stopped no arm: none was shown to be clearly behind; the reference at its best rate is never stopped"
        )
    if outcome.diverged_in_search:
        found = names(labels[end.experiment_id] for end in outcome.diverged_in_search)
        say(f"diverged in the search for a learning rate, so that rate is too high: {found}")
    by_message: dict[str, list[str]] = {}
    for end in outcome.failed:
        by_message.setdefault(f"{end.failure_kind}: {failure_shown(end.message or '')}", []).append(
            labels[end.experiment_id]
        )
    for message, failed in by_message.items():
        say(f"failed: {names(failed, every=True)}\n  {message}", file=sys.stderr)
    _print_scored(outcome, labels)
    for experiment_id in outcome.unpublished:
        say(
            f"note: {labels[experiment_id]} was done before, but its run folder and its adapter are gone, so no "
            "adapter was written. Its results are kept",
            file=sys.stderr,
        )
    if outcome.not_run and not was_stopped:
        why = (
            "the suite stops at a failure; --continue-on-error continues"
            if outcome.failed
            else "a worker was killed before it saved anything; run the command again"
        )
        say(f"not run: {why}", file=sys.stderr)


def _print_scored(outcome: StudyOutcome, names: Mapping[str, str]) -> None:
    """Print how many stored adapters were scored, which could not be, and which earlier scores could not be read."""
    if outcome.scored:
        say(f"scored {plural(len(outcome.scored), 'stored adapter')}")
    if outcome.left_to_score:
        say(f"{plural(len(outcome.left_to_score), 'stored adapter')} still to score", file=sys.stderr)
    by_message: dict[str, list[str]] = {}
    for end in outcome.not_scored:
        message = f"{end.failure_kind}: {failure_shown(end.message or '')}"
        by_message.setdefault(message, []).append(names[end.experiment_id])
    for message, failed in by_message.items():
        say(f"not scored: {', '.join(failed)}\n  {message}", file=sys.stderr)
    if outcome.adapters_gone:
        gone = listing(names[experiment_id] for experiment_id in outcome.adapters_gone)
        say(
            f"note: {gone}: the adapter is gone from its run folder and from the output folder, so a metric of the suite "
            "cannot be measured. Restore one of the two folders, or remove the metric",
            file=sys.stderr,
        )
    for problem in outcome.damaged_scores:
        say(
            f"note: {error_shown(problem)}\n  what it lacks is scored anew; restore the file from a backup, or delete the folder",
            file=sys.stderr,
        )


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Within the block, the first SIGINT or SIGTERM asks the run to stop, and a second one ends it at once.

    The workers finish their current step and save themselves first.
    """

    def __init__(self, *, resume_command: str) -> None:
        """`resume_command` continues the run, however it ends."""
        self._resume_command = resume_command
        self.executor: Executor | None = None
        """The executor whose workers stop; None before they start."""
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def is_stopping(self) -> bool:
        """Whether a signal has arrived."""
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for a process ended by this signal."""
        return 128 + (self._signal or 0)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a signal handler
        if self._signal is not None or self.executor is None:
            raise KeyboardInterrupt
        self._signal = number
        self.executor.leave()
        say(
            "\nstopping: packs that train are saved after their current step. Press Ctrl-C again to quit immediately; "
            f"either way, to continue: {self._resume_command}",
            file=sys.stderr,
        )
