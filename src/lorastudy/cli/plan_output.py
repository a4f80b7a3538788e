"""Plans on a terminal: what a dry run prints, and what `lorastudy estimate` prints of its packs."""

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from lorastudy.cli.console import PlainConsole
from lorastudy.planning.answers import Calibration
from lorastudy.planning.estimate import MemoryBudget, PackEstimate
from lorastudy.planning.pack_report import PackReport
from lorastudy.planning.plan_summary import (
    TERMS,
    TERMS_OF_FULL,
    disk_bytes,
    experiment_line,
    finding_lines,
    pack_line,
    plan_notes,
    size_line,
    validation_of,
)
from lorastudy.planning.study_plan import StudyPlan
from lorastudy.planning.suite_facts import trivial_lines
from lorastudy.report.numbers import count, duration, percent, plural, size


def show_plan(plan: StudyPlan) -> None:
    """Print what would run: notes, findings, packs and their experiments."""
    suite = plan.suite
    base_models = sorted({experiment.settings.base_model for experiment in plan.design.of_every_arm})
    console = PlainConsole()
    console.print(suite.name, style="bold", end="")
    console.print(f" ({suite.experiment_type})  base model: {', '.join(base_models)}")
    console.print(size_line(plan))
    for line in [*(f"note: {note}" for note in plan_notes(plan)), *finding_lines(plan)]:
        console.print(line)
    for line in [*plan.predicted.adapted.lines(plan.labels), *trivial_lines(plan.predicted.rows.read)]:
        console.print(line)
    for number, pack in enumerate(plan.packs, start=1):
        console.print(f"\npack {number}: {plural(len(pack.experiments), 'experiment')} on one base")
        estimate = plan.predicted.estimate(pack)
        if estimate is not None:
            console.print(f"  {pack_line(estimate, validation=validation_of(plan, pack))}")
        for experiment in pack.experiments:
            label = plan.experiment_labels[experiment.id]
            console.print(f"  {label:<24} {experiment_line(experiment)}  {experiment.id}")


def show_pack_report(console: PlainConsole, report: PackReport, *, of_suite: bool) -> None:
    """Print a pack's memory term by term, its time and disk space, whether it fits, and what would make it fit."""
    estimate, estimator = report.estimate, report.estimator
    console.print(estimator.settings.base_model, style="bold", end="")
    console.print(
        f" ({estimator.shape.model_type}, {count(estimator.shape.num_parameters)} parameters), "
        f"{estimator.settings.quantization}; {_held(report, of_suite=of_suite)} on one base, "
        f"{estimate.rows.batch.num_tokens} tokens an arm and forward pass, on a {estimator.machine.device}; "
        f"{estimate.engine}\n"
    )
    is_full = estimator.settings.arm_method.is_full
    _show_terms(console, estimate, words=TERMS_OF_FULL if is_full else TERMS)
    if estimate.calibration is None:
        console.print(
            "\ntime: not known: the store has no such run of this machine; --calibrate times a few steps"
        )
    else:
        _show_time(console, estimate, calibration=estimate.calibration)
    if report.validation is not None:
        console.print(str(report.validation))
    console.print(f"disk: {size(disk_bytes(estimate))}")
    if report.budget is not None:
        _show_fit(console, report, budget=report.budget)


def _held(report: PackReport, *, of_suite: bool) -> str:
    """The number of arms. In a suite, an arm trains separately with each seed, so these are experiments."""
    sizes = report.nums_experiments
    held = plural(len(report.estimate.num_trainable), "experiment" if of_suite else "arm")
    if len(sizes) == 1:
        return held
    return (
        f"{held} in each of {len(sizes)} packs"
        if len(set(sizes)) == 1
        else f"{held} in the largest of {len(sizes)} packs"
    )


def _show_fit(console: PlainConsole, report: PackReport, *, budget: MemoryBudget) -> None:
    fits = bool(report.fits)
    console.print("\nfits" if fits else "\ndoes not fit", style="green" if fits else "red", end="")
    console.print(
        f" {budget.words}: {size(report.estimate.prediction.terms.total)} of {size(budget.budget_bytes)} "
        f"({budget.left_free()})"
    )
    if not report.changes:
        return
    table = Table(
        box=None,
        header_style="bold",
        pad_edge=False,
        title="changes that may make it fit",
        title_justify="left",
    )
    table.add_column("change")
    table.add_column("predicted peak", justify="right")
    table.add_column("fits")
    for change in report.changes:
        table.add_row(change.change, size(change.total_bytes), "yes" if change.fits else "no")
    console.print()
    console.print(table)
    console.print("The effective batch is the same with each of these.")


def _show_terms(console: PlainConsole, estimate: PackEstimate, *, words: Mapping[str, str]) -> None:
    """Print a table of the memory terms and their sum."""
    table = Table(box=None, show_header=True, header_style="bold", pad_edge=False)
    table.add_column("held by")
    table.add_column("bytes", justify="right")
    table.add_column("share", justify="right")
    terms = estimate.prediction.terms
    for name, num_bytes in terms.named():
        if num_bytes:
            table.add_row(words[name], size(num_bytes), percent(num_bytes / terms.total))
    table.add_row(
        Text("predicted peak", style="bold"),
        Text(size(terms.total), style="bold"),
        f"in the {estimate.prediction.phase}",
    )
    console.print(table)


def _show_time(console: PlainConsole, estimate: PackEstimate, *, calibration: Calibration) -> None:
    """Print the time of a step and of the whole training, then the timed steps by number of arms."""
    assert estimate.step_seconds is not None
    whole = ""
    if estimate.train_seconds is not None:
        whole = f"; {duration(estimate.train_seconds)} for {count(estimate.rows.num_steps or 0)} steps"
    console.print(
        f"\ntime: {duration(estimate.step_seconds)} on average for a step of all arms of this pack{whole}, from {calibration.source}:"
    )
    table = Table(box=None, show_header=True, header_style="bold", pad_edge=False)
    for title in ("arms together", "a step", "an arm's share", "tokens a second"):
        table.add_column(title, justify="right")
    for point in calibration.points:
        table.add_row(
            count(point.num_arms),
            duration(point.seconds),
            duration(point.seconds / point.num_arms),
            count(point.tokens_per_second),
        )
    console.print(table)
