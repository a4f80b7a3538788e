"""Running experiments from a command: expansion, the plan as text, progress, and how it ended."""

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import typer
from rich.console import Console

from lorastudy.cli.departure import Departure
from lorastudy.cli.estimating import pack_line, plan_of, say_problem
from lorastudy.cli.options import DATABASE, OUTPUT_DIR, RUNS_DIR
from lorastudy.data.fingerprint import dataset_fingerprint
from lorastudy.data.load import train_and_eval
from lorastudy.executors import Executor, LocalExecutor
from lorastudy.experiments.expansion import expand, sources_reader
from lorastudy.jobs import AdapterOrigin
from lorastudy.planner.packing import remaining_packs
from lorastudy.runner import Plan, SuiteOutcome, not_done, run_suite
from lorastudy.spec.experiment import Experiment, Sources, canonical_json
from lorastudy.spec.hub import check_base_model, is_hub_model
from lorastudy.spec.identity import base_model_fingerprint
from lorastudy.spec.settings import Settings
from lorastudy.spec.suite import Suite
from lorastudy.tracker import ExperimentTracker

#: The settings that decide which rows are read.
_DATA_KEYS = (
    "dataset_path", "eval_dataset_path", "forgetting_dataset_path", "eval_fraction", "max_train_samples",
    "max_eval_samples",
)  # fmt: skip


#: The exact sign-flip test reaches .05 with six seeds at the earliest, as `lorastudy.analysis.paired` explains.
NUM_SEEDS_FOR_A_VERDICT = 6


def experiments_of(suite: Suite) -> tuple[Experiment, ...]:
    """The suite's experiments, with what they read fingerprinted."""
    return expand(suite, fingerprint_dataset=dataset_fingerprint, fingerprint_base=base_model_fingerprint)


def sources_of() -> Callable[[Settings], Sources]:
    """A function that fingerprints what settings read, each file and model once."""
    return sources_reader(dataset_fingerprint, base_model_fingerprint)


def check_data(experiments: Sequence[Experiment]) -> None:
    """Nothing, if their data can be read and held out; a worker would find out only once it has loaded the base.

    Raises:
        DataError: a file is empty, damaged or of an unknown format, or holding out leaves one side empty.
    """
    readings = {
        canonical_json([getattr(experiment.settings, key) for key in _DATA_KEYS]): experiment.settings
        for experiment in experiments
    }
    for settings in readings.values():
        train_and_eval(settings)


def show_plan(suite: Suite, experiments: Sequence[Experiment], *, database: str) -> None:
    """Print what would run: packs, experiments, and which results are there already."""
    missing = _missing(experiments, database=database)
    check_data(missing)
    predicted = plan_of(experiments)
    packs = remaining_packs(experiments, missing, arms_per_pack=predicted.arms_per_pack)
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"[bold]{suite.name}[/bold] ({suite.experiment_type})  base model: {_shared(experiments, 'base_model')}"
    )
    console.print(
        f"{len(experiments)} experiments, {len(experiments) - len(missing)} of them done; "
        f"{len(missing)} to run in {len(packs)} pack(s). An experiment is an arm with one seed."
    )
    for note in [*_notes(experiments), *([predicted.problem] if predicted.problem else [])]:
        console.print(f"note: {note}")
    for number, pack in enumerate(packs, start=1):
        console.print(f"\npack {number}: {len(pack.experiments)} experiments on one base")
        estimate = predicted.estimate(pack)
        if estimate is not None:
            console.print(f"  {pack_line(estimate)}")
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

    missing = _missing(experiments, database=database)
    check_data(missing)
    _say_what_is_replaced(missing, output=plan.output)
    for base_model in sorted({experiment.settings.base_model for experiment in missing}):
        check_base_model(base_model)
    executor = executor or LocalExecutor()
    predicted = plan_of(experiments)
    say_problem(predicted)
    plan = replace(plan, arms_per_pack=predicted.arms_per_pack, predict=predicted.predictions)
    packs = remaining_packs(experiments, missing, arms_per_pack=predicted.arms_per_pack)
    with (
        ExperimentTracker(database, writable=True) as tracker,
        Progress(num_packs=len(packs)) as progress,
        Departure(executor) as departure,
    ):
        tracker.register(suite.name, experiments, description=suite.description)
        if suite.path is not None:
            # A suite is what its file says now: an attempt with a mistake since mended is not in its report.
            tracker.keep_only(suite.name, experiments)
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
    notes = [
        f"base model {name}: taken for an id on the hub; whether it can be had is found out when the suite runs"
        for name in sorted({experiment.settings.base_model for experiment in experiments})
        if is_hub_model(name)
    ]
    most_seeds = max(Counter(experiment.arm for experiment in experiments).values(), default=0)
    if most_seeds < NUM_SEEDS_FOR_A_VERDICT:
        notes.append(
            f"{most_seeds} seed(s) an arm: differences will be shown with their intervals, but no verdict is possible "
            f"below {NUM_SEEDS_FOR_A_VERDICT} seeds"
        )
    return notes


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
    if "://" not in database and not Path(database).exists():
        return list(experiments)
    with ExperimentTracker(database) as tracker:
        return not_done(experiments, tracker=tracker)


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
        by_message.setdefault(f"{end.failure_kind}: {end.message}", []).append(names[end.experiment_id])
    for message, failed in by_message.items():
        print(f"failed: {', '.join(failed)}\n  {message}", file=sys.stderr)
    if outcome.not_run and not has_left:
        print("not run: the suite stops at a failure; --continue-on-error goes on", file=sys.stderr)


def _shared(experiments: Sequence[Experiment], key: str) -> str:
    return ", ".join(sorted({str(getattr(experiment.settings, key)) for experiment in experiments}))


def _summary(experiment: Experiment) -> str:
    settings = experiment.settings
    targets = settings.target_modules
    names = targets if isinstance(targets, str) else ",".join(targets)
    length = (
        f"{settings.max_steps} steps" if settings.max_steps else f"{settings.num_train_epochs or 1:g} epochs"
    )
    return (
        f"r={settings.lora_rank} alpha={settings.lora_alpha_value:g} {names} lr={settings.learning_rate:g} "
        f"{settings.quantization} seed={experiment.seed} {length}"
    )
