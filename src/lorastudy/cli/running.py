"""Running experiments from a command: expansion, the plan as text, progress, and how it ended."""

import contextlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import typer

from lorastudy.analysis.fairness.case import Case
from lorastudy.analysis.fairness.lint import lint
from lorastudy.analysis.fairness.wording import arms_in_words
from lorastudy.cli.checking import data_notes, layout_notes, margin_notes, read_data, suite_case
from lorastudy.cli.console import PlainConsole
from lorastudy.cli.departure import Departure
from lorastudy.cli.estimating import pack_line, plan_of, say_problem
from lorastudy.cli.options import DATABASE, OUTPUT_DIR, RUNS_DIR
from lorastudy.cli.outlook import outlook, size_line
from lorastudy.cli.terminal import failure_shown, runs_own_code, say
from lorastudy.data.batches import steps_of
from lorastudy.data.fingerprint import dataset_fingerprint
from lorastudy.data.load import StudyData, train_and_eval
from lorastudy.executors import Executor, local_executor
from lorastudy.experiments.expansion import sources_reader
from lorastudy.experiments.rate_search import Design, MeritsOf, design, foreseen
from lorastudy.planner.adapted import AdaptedArms
from lorastudy.planner.packing import PlannedPack, remaining_packs
from lorastudy.planner.rows import RowsChecked
from lorastudy.publishing import published, usual_place
from lorastudy.race import outraced
from lorastudy.report.numbers import listing, plural
from lorastudy.rounds import DesignBy, merits_in, run_rounds
from lorastudy.runner import Plan, SuiteOutcome, not_done
from lorastudy.spec.experiment import Experiment, Sources
from lorastudy.spec.hub import check_base_model, is_hub_model
from lorastudy.spec.identity import base_model_fingerprint
from lorastudy.spec.settings import Settings
from lorastudy.spec.suite import EXPERIMENT_TYPES, Suite
from lorastudy.tracker import ExperimentTracker


def design_of(suite: Suite, merits_of: MeritsOf = lambda _: {}) -> Design:
    """The suite's experiments as far as results tell by now, with what they read fingerprinted."""
    return design(
        suite,
        fingerprint_dataset=dataset_fingerprint,
        fingerprint_base=base_model_fingerprint,
        merits_of=merits_of,
        num_steps=num_steps,
    )


def foreseen_of(suite: Suite) -> tuple[Experiment, ...]:
    """The suite's experiments if each search for a learning rate finds the middle of its first grid best."""
    return foreseen(
        suite,
        fingerprint_dataset=dataset_fingerprint,
        fingerprint_base=base_model_fingerprint,
        num_steps=num_steps,
    )


def case_of(
    suite: Suite,
    experiments: Sequence[Experiment],
    *,
    rows: RowsChecked,
    data: Mapping[str, StudyData],
    adapted: AdaptedArms | None = None,
) -> Case:
    """The suite as the linter judges it before it runs, by the experiments foreseen, their data, and what a worker read of them."""
    return suite_case(
        experiments,
        suite_name=suite.name,
        data=data,
        rows=rows.read,
        question=suite.question,
        adapted=adapted,
    )


def num_steps(settings: Settings) -> int:
    """Optimizer steps of an arm. Rows of which the cut leaves no answer are not known here, and still counted."""
    if settings.max_steps is not None:
        return settings.max_steps
    return steps_of(settings, num_rows=len(train_and_eval(settings).train))


def sources_of() -> Callable[[Settings], Sources]:
    """A function that fingerprints what settings read, each file and model once."""
    return sources_reader(dataset_fingerprint, base_model_fingerprint)


def show_plan(suite: Suite, *, database: str) -> None:
    """Print what would run: packs, experiments, and which results are there already."""
    planned, missing = _missing(_design_by(suite, None), suite, database=database)
    experiments = planned.of_every_arm
    executor = local_executor(experiments)
    predicted = plan_of(experiments, [*missing, *planned.waiting], num_workers=executor.num_packs_at_once)
    foreseen = foreseen_of(suite)
    case = case_of(suite, foreseen, rows=predicted.rows, data=read_data(foreseen), adapted=predicted.adapted)
    notes = [
        *suite.notes,
        *margin_notes(suite.question),
        *_notes(experiments),
        *data_notes(experiments, read_data(experiments)),
        *layout_notes(predicted.rows.read),
        *predicted.problems,
        *predicted.adapted.unknown,
        *predicted.adapted.misfits.values(),
    ]
    packs = _packs(
        planned, missing, arms_per_pack=predicted.arms_per_pack, num_at_once=executor.num_packs_at_once
    )
    notes += outlook(suite, planned, packs=packs, predicted=predicted, executor=executor)
    console = PlainConsole()
    console.print(suite.name, style="bold", end="")
    console.print(f" ({suite.experiment_type})  base model: {_shared(experiments, 'base_model')}")
    console.print(size_line(planned, missing, num_packs=len(packs)))
    for note in [*(f"note: {note}" for note in notes), *_fairness(case)]:
        console.print(note)
    for line in predicted.adapted.lines():
        console.print(line)
    for number, pack in enumerate(packs, start=1):
        console.print(f"\npack {number}: {plural(len(pack.experiments), 'experiment')} on one base")
        estimate = predicted.estimate(pack)
        if estimate is not None:
            console.print(f"  {pack_line(estimate)}")
        for experiment in pack.experiments:
            console.print(f"  {experiment.name:<40} {_summary(experiment)}  {experiment.id}")


def run_experiments(
    suite: Suite,
    *,
    database: str,
    plan: Plan,
    executor: Executor | None = None,
    experiments: Sequence[Experiment] | None = None,
) -> Design:
    """Run what is missing, with progress; print how it ended, and return what was run. Exits with 1 or 2 when an experiment failed.

    Exit code 2 means that what failed is the user's to mend, as for any bad input. A base model that cannot be
    had, or data that cannot be read, is refused before anything is written. Without an executor, workers run on this machine.
    `experiments` are those of a suite that is taken up from the store, whose arms nobody knows any more.
    """
    from lorastudy.cli.progress import Progress

    design_by = _design_by(suite, experiments)
    with contextlib.ExitStack() as open_until_done:
        # A store that is there comes first, since another writer of it is refused at once.
        tracker = None if _is_new(database) else open_until_done.enter_context(_writer(database))
        planned, missing = _planned(design_by, suite, tracker=tracker)
        to_run = [*missing, *planned.waiting]
        notes = [*suite.notes, *data_notes(to_run, read_data(to_run)), *_own_code(planned.of_every_arm)]
        for note in notes:
            say(f"note: {note}", file=sys.stderr)
        for base_model in sorted({experiment.settings.base_model for experiment in to_run}):
            check_base_model(base_model)
        executor = executor or local_executor(planned.of_every_arm)
        open_until_done.enter_context(contextlib.closing(executor))
        predicted = plan_of(planned.of_every_arm, to_run, num_workers=executor.num_packs_at_once)
        for note in layout_notes(predicted.rows.read):
            say(f"note: {note}", file=sys.stderr)
        say_problem(predicted)
        plan = replace(plan, arms_per_pack=predicted.arms_per_pack, predict=predicted.predictions)
        tracker = tracker or open_until_done.enter_context(_writer(database))
        packs = _packs(
            planned, missing, arms_per_pack=plan.arms_per_pack, num_at_once=executor.num_packs_at_once
        )
        for line in (
            f"{suite.name}: {size_line(planned, missing, num_packs=len(packs))}",
            *outlook(suite, planned, packs=packs, predicted=predicted, executor=executor),
        ):
            say(line, file=sys.stderr)
        progress = open_until_done.enter_context(Progress(gives_reasons=plan.continue_on_error))
        departure = open_until_done.enter_context(Departure(executor))
        last, outcome = run_rounds(
            suite,
            design_by,
            tracker=tracker,
            executor=executor,
            plan=replace(plan, is_leaving=departure.is_requested, on_stage=progress.on_stage),
            on_event=progress.on_event,
        )
    _print_outcome(outcome, last.experiments, has_left=departure.is_requested())
    _say_where_adapters_lie(outcome, last.experiments, suite_name=suite.name, output=plan.output)
    if departure.is_requested() and outcome.not_run:
        say(f"to go on: {_command_to_go_on(suite, database=database, plan=plan)}", file=sys.stderr)
        raise typer.Exit(departure.exit_code)
    if outcome.failed:
        raise typer.Exit(2 if all(end.failure_kind == "user" for end in outcome.failed) else 1)
    return last


def _design_by(suite: Suite, experiments: Sequence[Experiment] | None) -> DesignBy:
    """What the suite's file asks for by the results; without a file, the experiments that were registered."""
    if experiments is None:
        return lambda merits_of: design_of(suite, merits_of)
    registered = tuple(experiments)
    return lambda _: Design(experiments=registered, rounds=(registered,))


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


def _say_where_adapters_lie(
    outcome: SuiteOutcome, experiments: Sequence[Experiment], *, suite_name: str, output: Path
) -> None:
    """Where that is not where a user looks, since other adapters are kept there; and which made room."""
    of_suite = output / suite_name
    elsewhere = [
        str(place.parent.relative_to(of_suite))
        for experiment in experiments
        if (place := published(experiment, suite_name=suite_name, output=output)) is not None
        and place != usual_place(experiment, output=output)
    ]
    if elsewhere:
        say(
            f"note: another experiment's adapter, or a folder of somebody else's, is kept in {output}/<name>/final_model; "
            f"in {of_suite}/<name>/final_model instead: {listing(elsewhere)}",
            file=sys.stderr,
        )
    if outcome.replaced:
        places = listing(f"{place} ({experiment_id})" for place, experiment_id in outcome.replaced)
        say(
            f"note: adapters that no suite asks for any more were replaced; their run folders keep them: {places}",
            file=sys.stderr,
        )


def _missing(design_by: DesignBy, suite: Suite, *, database: str) -> tuple[Design, list[Experiment]]:
    """The design by now and what a dry run would find to do; a store that does not exist yet holds nothing."""
    if _is_new(database):
        return _planned(design_by, suite, tracker=None)
    with ExperimentTracker(database) as tracker:
        return _planned(design_by, suite, tracker=tracker)


def _planned(
    design_by: DesignBy, suite: Suite, *, tracker: ExperimentTracker | None
) -> tuple[Design, list[Experiment]]:
    """The design by now and what is missing of it; without a store all of its first round."""
    if tracker is None:
        planned = design_by(lambda _: {})
        return planned, list(planned.experiments)
    planned = design_by(merits_in(tracker, suite.primary_metric))
    missing = not_done(planned.experiments, tracker=tracker, searching=planned.tuning)
    stopped = outraced(missing, suite_name=suite.name, tracker=tracker) if suite.rungs else frozenset()
    return planned, [each for each in missing if each.id not in stopped]


def _packs(
    planned: Design,
    missing: Sequence[Experiment],
    *,
    arms_per_pack: Mapping[str, int],
    num_at_once: int,
) -> list[PlannedPack]:
    return [
        pack
        for of_round in planned.rounds
        for pack in remaining_packs(of_round, missing, arms_per_pack=arms_per_pack, num_at_once=num_at_once)
    ]


def _is_new(database: str) -> bool:
    """Whether the store is still to be made; an empty file is what a crash left of making it."""
    file = Path(database)
    return "://" not in database and (not file.exists() or file.stat().st_size == 0)


def _writer(database: str) -> ExperimentTracker:
    tracker = ExperimentTracker(database, writable=True)
    if tracker.left_behind is not None:
        say(f"note: took over the results store from {tracker.left_behind}, which is gone", file=sys.stderr)
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
    say(
        f"{len(outcome.completed)} completed, {len(outcome.failed)} failed, {len(outcome.done_before)} done before, "
        f"{len(outcome.not_run)} not run"
    )
    if outcome.outraced:
        arms = dict.fromkeys(e.arm for e in experiments if e.id in set(outcome.outraced))
        say(f"stopped by racing, since clearly behind: {', '.join(arms)} ({len(outcome.outraced)} runs)")
    if outcome.diverged_in_search:
        found = ", ".join(names[end.experiment_id] for end in outcome.diverged_in_search)
        say(f"diverged in the search for a learning rate, so that rate is too high: {found}")
    by_message: dict[str, list[str]] = {}
    for end in outcome.failed:
        by_message.setdefault(f"{end.failure_kind}: {failure_shown(end.message or '')}", []).append(
            names[end.experiment_id]
        )
    for message, failed in by_message.items():
        say(f"failed: {', '.join(failed)}\n  {message}", file=sys.stderr)
    for experiment_id in outcome.unpublished:
        say(
            f"note: {names[experiment_id]} was done before, but its run folder is gone and its adapter with it: "
            "it was not written. Its numbers are kept",
            file=sys.stderr,
        )
    if outcome.not_run and not has_left:
        say("not run: the suite stops at a failure; --continue-on-error goes on", file=sys.stderr)


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
