"""Plans and estimates on a terminal: a dry run, the table of memory terms, the timed steps."""

from rich.table import Table
from rich.text import Text

from lorastudy.cli.console import PlainConsole
from lorastudy.planning.estimate import PackEstimate
from lorastudy.planning.plan_summary import (
    TERMS,
    experiment_line,
    finding_lines,
    pack_line,
    plan_notes,
    size_line,
)
from lorastudy.planning.study_plan import StudyPlan
from lorastudy.planning.suite_facts import trivial_lines
from lorastudy.planning.time import Calibration
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
    for line in [*plan.predicted.adapted.lines(), *trivial_lines(plan.predicted.rows.read)]:
        console.print(line)
    for number, pack in enumerate(plan.packs, start=1):
        console.print(f"\npack {number}: {plural(len(pack.experiments), 'experiment')} on one base")
        estimate = plan.predicted.estimate(pack)
        if estimate is not None:
            console.print(f"  {pack_line(estimate)}")
        for experiment in pack.experiments:
            console.print(f"  {experiment.name:<40} {experiment_line(experiment)}  {experiment.id}")


def show_terms(console: PlainConsole, estimate: PackEstimate) -> None:
    """Print a table of the memory terms and their sum."""
    table = Table(box=None, show_header=True, header_style="bold", pad_edge=False)
    table.add_column("held by")
    table.add_column("bytes", justify="right")
    table.add_column("share", justify="right")
    terms = estimate.prediction.terms
    for name, num_bytes in terms.named():
        if num_bytes:
            table.add_row(TERMS[name], size(num_bytes), percent(num_bytes / terms.total))
    table.add_row(
        Text("predicted peak", style="bold"),
        Text(size(terms.total), style="bold"),
        f"in the {estimate.prediction.phase}",
    )
    console.print(table)


def show_time(console: PlainConsole, estimate: PackEstimate, *, calibration: Calibration) -> None:
    """Print the time of a step and of the whole training, then the timed steps by number of arms."""
    assert estimate.step_seconds is not None
    whole = ""
    if estimate.train_seconds is not None:
        whole = f"; {duration(estimate.train_seconds)} for {count(estimate.rows.num_steps or 0)} steps"
    console.print(
        f"\ntime: {duration(estimate.step_seconds)} a step of all arms{whole}, by the steps timed here:"
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
