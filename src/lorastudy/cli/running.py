"""Running experiments from a command: expansion, the plan as text, progress, and how it ended."""

import contextlib
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import typer
from rich.console import Console

from lorastudy.analysis.fairness.case import Case
from lorastudy.analysis.fairness.lint import lint
from lorastudy.analysis.fairness.wording import arms_in_words
from lorastudy.cli.checking import data_notes, read_data, suite_case
from lorastudy.cli.departure import Departure
from lorastudy.cli.options import DATABASE, OUTPUT_DIR, RUNS_DIR
from lorastudy.cli.terminal import failure_shown, runs_own_code, shown
from lorastudy.data.fingerprint import dataset_fingerprint
from lorastudy.executors import Executor, local_executor
from lorastudy.experiments.expansion import expand, sources_reader
from lorastudy.jobs import AdapterOrigin
from lorastudy.planner.packing import remaining_packs
from lorastudy.runner import Plan, SuiteOutcome, not_done, run_suite
from lorastudy.spec.experiment import Experiment, Sources
from lorastudy.spec.hub import check_base_model, is_hub_model
from lorastudy.spec.identity import base_model_fingerprint
from lorastudy.spec.settings import Settings
from lorastudy.spec.suite import EXPERIMENT_TYPES, Suite
from lorastudy.tracker import ExperimentTracker


def experiments_of(suite: Suite) -> tuple[Experiment, ...]:
    """The suite's experiments, with what they read fingerprinted."""
    return expand(suite, fingerprint_dataset=dataset_fingerprint, fingerprint_base=base_model_fingerprint)


def sources_of() -> Callable[[Settings], Sources]:
    """A function that fingerprints what settings read, each file and model once."""
    return sources_reader(dataset_fingerprint, base_model_fingerprint)


def show_plan(suite: Suite, experiments: Sequence[Experiment], *, database: str) -> None:
    """Print what would run: packs, experiments, and which results are there already."""
    missing = _missing(experiments, database=database)
    data = read_data(experiments)
    case = suite_case(experiments, suite_name=suite.name, data=data)
    notes = [*suite.notes, *_notes(experiments), *data_notes(experiments, data)]
    executor = local_executor(experiments)
    packs = remaining_packs(experiments, missing, num_at_once=executor.num_packs_at_once)
    # No markup: names of models, modules and files may hold brackets.
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(suite.name, style="bold", end="")
    console.print(f" ({shown(suite.experiment_type)})  base model: {_shared(experiments, 'base_model')}")
    console.print(
        f"{len(experiments)} experiments, {len(experiments) - len(missing)} of them done; "
        f"{len(missing)} to run in {len(packs)} pack(s). An experiment is an arm with one seed."
    )
    for note in [*(f"note: {note}" for note in notes), *_fairness(case)]:
        console.print(shown(note))
    for number, pack in enumerate(packs, start=1):
        console.print(f"\npack {number}: {len(pack.experiments)} experiments on one base")
        for experiment in pack.experiments:
            console.print(f"  {experiment.name:<40} {_summary(experiment)}  {experiment.id}")


def run_experiments(
    suite: Suite,
    experiments: Sequence[Experiment],
    *,
    database: str,
    plan: Plan,
    executor: Executor | None = None,
) -> SuiteOutcome:
    """Run what is missing, with progress; print how it ended. Exits with 1 or 2 when an experiment failed.

    Exit code 2 means that what failed is the user's to mend, as for any bad input. A base model that cannot be
    had, or data that cannot be read, is refused before anything is written. Without an executor, workers run on this machine.
    """
    from lorastudy.cli.progress import Progress

    executor = executor or local_executor(experiments)
    with contextlib.ExitStack() as open_until_done:
        # A store that is there comes first, since another writer of it is refused at once.
        tracker = None if _is_new(database) else open_until_done.enter_context(_writer(database))
        missing = list(experiments) if tracker is None else not_done(experiments, tracker=tracker)
        notes = [*suite.notes, *data_notes(missing, read_data(missing)), *_own_code(experiments)]
        for note in notes:
            print(f"note: {shown(note)}", file=sys.stderr)
        _say_what_is_replaced(missing, output=plan.output)
        for base_model in sorted({experiment.settings.base_model for experiment in missing}):
            check_base_model(base_model)
        tracker = tracker or open_until_done.enter_context(_writer(database))
        tracker.register(suite.name, experiments, description=suite.description)
        tracker.state_question(suite.name, suite.question)
        if suite.path is not None:
            # A suite is what its file says now: an attempt with a mistake since mended is not in its report.
            tracker.keep_only(suite.name, experiments)
        num_packs = len(remaining_packs(experiments, missing, num_at_once=executor.num_packs_at_once))
        progress = open_until_done.enter_context(Progress(num_packs=num_packs))
        departure = open_until_done.enter_context(Departure(executor))
        outcome = run_suite(
            experiments,
            suite_name=suite.name,
            tracker=tracker,
            executor=executor,
            plan=replace(plan, is_leaving=departure.is_requested),
            on_event=progress.on_event,
        )
    _print_outcome(outcome, experiments, has_left=departure.is_requested())
    if departure.is_requested() and outcome.not_run:
        print(f"to go on: {_command_to_go_on(suite, database=database, plan=plan)}", file=sys.stderr)
        raise typer.Exit(departure.exit_code)
    if outcome.failed:
        raise typer.Exit(2 if all(end.failure_kind == "user" for end in outcome.failed) else 1)
    return outcome


def _notes(experiments: Sequence[Experiment]) -> list[str]:
    """What a reader of the plan should know before it runs."""
    on_the_hub = [
        f"base model {name}: taken for an id on the hub; whether it can be had is found out when the suite runs"
        for name in sorted({experiment.settings.base_model for experiment in experiments})
        if is_hub_model(name)
    ]
    return [*on_the_hub, *_own_code(experiments)]


def _fairness(case: Case) -> list[str]:
    """The linter's findings, a line each; `lorastudy check` has the reasons."""
    found = lint(case)
    lines = [
        f"{finding.code} {finding.severity}: {finding.found} ({arms_in_words(finding.arms, num_arms=len(case.arms))})"
        for finding in found
    ]
    return [*lines, "`lorastudy check FILE` says why that is unfair and what to change"] if found else []


def _own_code(experiments: Sequence[Experiment]) -> list[str]:
    """Whose Python code a suite runs besides this program's, with the rights of who runs it."""
    models = {e.settings.base_model for e in experiments if e.settings.trust_remote_code}
    types = {e.experiment_type for e in experiments} - set(EXPERIMENT_TYPES)
    return [
        *map(runs_own_code, sorted(models)),
        *(f"experiment_type: {name} is run, with your rights" for name in sorted(types)),
    ]


def _say_what_is_replaced(experiments: Sequence[Experiment], *, output: Path) -> None:
    for experiment in experiments:
        target = output / experiment.name / "final_model"
        origin = AdapterOrigin.read(target)
        if origin is not None and origin.experiment_id != experiment.id:
            print(
                f"note: {target} holds the adapter of another experiment ({origin.experiment_id}), which will be replaced; "
                "its run folder keeps it",
                file=sys.stderr,
            )


def _missing(experiments: Sequence[Experiment], *, database: str) -> list[Experiment]:
    """What a dry run would find to do; a store that does not exist yet holds nothing."""
    if _is_new(database):
        return list(experiments)
    with ExperimentTracker(database) as tracker:
        return not_done(experiments, tracker=tracker)


def _is_new(database: str) -> bool:
    """Whether the store is still to be made; an empty file is what a crash left of making it."""
    file = Path(database)
    return "://" not in database and (not file.exists() or file.stat().st_size == 0)


def _writer(database: str) -> ExperimentTracker:
    tracker = ExperimentTracker(database, writable=True)
    if tracker.left_behind is not None:
        print(f"note: took over the results store from {tracker.left_behind}, which is gone", file=sys.stderr)
    return tracker


def _command_to_go_on(suite: Suite, *, database: str, plan: Plan) -> str:
    """`lorastudy resume` with what was not left at its default."""
    flags = {
        "--database": (database, DATABASE),
        "--runs-dir": (str(plan.runs), str(RUNS_DIR)),
        "--output-dir": (str(plan.output), str(OUTPUT_DIR)),
    }
    given = [part for flag, (value, default) in flags.items() if value != default for part in (flag, value)]
    return shlex.join(["lorastudy", "resume", suite.name, *given])


def _print_outcome(outcome: SuiteOutcome, experiments: Sequence[Experiment], *, has_left: bool) -> None:
    names = {experiment.id: experiment.name for experiment in experiments}
    print(
        f"{len(outcome.completed)} completed, {len(outcome.failed)} failed, {len(outcome.done_before)} done before, "
        f"{len(outcome.not_run)} not run"
    )
    by_message: dict[str, list[str]] = {}
    for end in outcome.failed:
        by_message.setdefault(f"{end.failure_kind}: {failure_shown(end.message or '')}", []).append(
            names[end.experiment_id]
        )
    for message, failed in by_message.items():
        print(f"failed: {', '.join(failed)}\n  {message}", file=sys.stderr)
    for experiment_id in outcome.unpublished:
        print(
            f"note: {names[experiment_id]} was done before, but its run folder is gone and its adapter with it: "
            f"output/{names[experiment_id]}/final_model was not written. Its numbers are kept",
            file=sys.stderr,
        )
    if outcome.not_run and not has_left:
        print("not run: the suite stops at a failure; --continue-on-error goes on", file=sys.stderr)


def _shared(experiments: Sequence[Experiment], key: str) -> str:
    return shown(", ".join(sorted({str(getattr(experiment.settings, key)) for experiment in experiments})))


def _summary(experiment: Experiment) -> str:
    settings = experiment.settings
    targets = settings.target_modules
    names = targets if isinstance(targets, str) else shown(",".join(targets))
    length = (
        f"{settings.max_steps} steps" if settings.max_steps else f"{settings.num_train_epochs or 1:g} epochs"
    )
    return (
        f"r={settings.lora_rank} alpha={settings.lora_alpha_value:g} {names} lr={settings.learning_rate:g} "
        f"{settings.quantization} seed={experiment.seed} {length}"
    )
