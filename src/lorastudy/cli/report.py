"""`lorastudy report`: RESULTS.md, its plots and an HTML page from the results store."""

import shlex
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorastudy.cli.options import Database, ReportFile
from lorastudy.cli.terminal import say, shown
from lorastudy.places import DATABASE, REPORT

if TYPE_CHECKING:
    from lorastudy.report.read import Report, Studied
    from lorastudy.report.sections.front import StudySummary
    from lorastudy.running.adapters import AdapterPlaces
    from lorastudy.suite.experiment import Experiment


def report(
    experiment_type: Annotated[str | None, typer.Option(help="Only suites of this type.")] = None,
    suite_name: Annotated[
        str | None,
        typer.Option(
            "--suite-name", help="Only this suite; by default all suites of the store, the latest first."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Of imported results: the arm to compare the others with; by default the best."),
    ] = None,
    with_answers: Annotated[
        bool,
        typer.Option(
            "--with-answers",
            help="Also some prompts with their references and each arm's answers. They are rows of your data.",
        ),
    ] = False,
    output: ReportFile = REPORT,
    database: Database = DATABASE,
) -> None:
    """Write the report: what is better, by how much, how sure that is, and what it costs."""
    from lorastudy.report import read_report, save_report
    from lorastudy.store import ExperimentTracker

    with ExperimentTracker(database) as tracker:
        found = read_report(
            tracker,
            experiment_type=experiment_type,
            suite_name=suite_name,
            reference=reference,
            store_flags=() if database == DATABASE else ("--database", database),
        )
        written = save_report(found, tracker, output=output, with_answers=with_answers)
    say_report(found, written)


#: Longer lines are hard to read, however wide the terminal.
_WIDEST = 100


def say_results(
    suite_name: str, *, experiments: "Sequence[Experiment]", database: str, output_dir: Path
) -> None:
    """Print the end of a suite: the answer, how sure it is, its cost, the place of the adapter, and the next command.

    The sentences are those of its report. `experiments` are those that ran.
    """
    from lorastudy.report import read_report
    from lorastudy.running.adapters import chosen_adapter, published_places
    from lorastudy.store import ExperimentTracker

    with ExperimentTracker(database) as tracker:
        results = tracker.get_all_experiments(suite_name=suite_name)
        if not any(result.status == "completed" for result in results):
            return  # failures are already printed
        report = read_report(tracker, suite_name=suite_name)
        adapters = [
            None
            if summary.arm is None
            else chosen_adapter(studied.analysis, summary.arm, tracker=tracker, output=output_dir)
            for summary, studied in zip(report.summaries, report.studies, strict=True)
        ]
    for summary, adapter in zip(report.summaries, adapters, strict=True):
        say_summary(summary)
        # A path is not wrapped, so that you can copy it.
        if adapter is not None and adapter.folder is not None:
            say(f"Adapter. {adapter.folder} ({adapter.choice.words})")
        else:
            places = published_places(experiments, suite_name=suite_name, output=output_dir)
            folders = _adapter_folders(places, of_suite=output_dir / suite_name, output_dir=output_dir)
            if folders:
                say(f"Adapters. {folders}")
    given = [] if database == DATABASE else ["--database", database]
    # Quoted: the name may come from a foreign store.
    say(f"next: {shlex.join(['lorastudy', 'report', '--suite-name', suite_name, *given])}")


def _adapter_folders(places: "AdapterPlaces", *, of_suite: Path, output_dir: Path) -> str:
    """The folder of the adapter, or with several adapters the pattern of their folders and the first of them."""
    found = places.usual or places.elsewhere
    if not found:
        return ""
    if len(places.usual) + len(places.elsewhere) == 1:
        return str(found[0])
    return f"{output_dir if places.usual else of_suite}/<name>/final_model, such as {found[0]}"


def say_report(report: "Report", written: Sequence[Path], *, chart: bool = False) -> None:
    """Print the summary of the study that ran last, if asked with its first chart, the titles of the others, and the files."""
    from lorastudy.report.numbers import plural

    first, *others = report.summaries
    say_summary(first)
    if chart:
        _say_chart(report.studies[0])
    say()
    pages = [path for path in written if path.suffix in {".md", ".html"}]
    if others:
        titles = "; ".join(summary.title for summary in others)
        _say_wrapped(
            f"{pages[0]} also covers {plural(len(others), 'suite')} from before: {titles}. "
            "For a single one: lorastudy report --suite-name NAME"
        )
    if report.imported_apart:
        _say_wrapped(
            f"not in it, because imported results have reports of their own: {', '.join(report.imported_apart)}. "
            "To report one: lorastudy report --suite-name NAME"
        )
    for path in pages:
        say(f"wrote {path}")
    if num_plots := sum(path.suffix == ".png" for path in written):
        folder = next(path.parent for path in written if path.suffix == ".png")
        say(f"wrote {plural(num_plots, 'plot')} (PNG and SVG) into {folder}")


def _say_chart(studied: "Studied") -> None:
    """Print the first chart of the study's report in plain characters, or nothing where the terminal is too narrow for one."""
    from lorastudy.report.document import fit_to_be_shown
    from lorastudy.report.figures.data import first_figure
    from lorastudy.report.figures.terminal import terminal_chart
    from lorastudy.suite.safe_text import Privacy

    figure = first_figure(studied.analysis)
    if figure is None:
        return
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    lines = terminal_chart(fit_to_be_shown(figure, Privacy.of_this_machine()), width=width)
    if lines:
        say()
    for line in lines:
        say(shown(line))


def say_summary(summary: "StudySummary") -> None:
    """Print the first page of a report in a few lines."""
    say(f"\n{summary.title}")
    for line in summary.lines():
        _say_wrapped(line)


def _say_wrapped(text: str) -> None:
    """Print a paragraph as wide as the terminal. Names are not broken, so that you can copy them."""
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    say(
        textwrap.fill(
            shown(text), width=width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    )
