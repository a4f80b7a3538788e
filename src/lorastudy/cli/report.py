"""`lorastudy report`: RESULTS.md, its plots and an HTML page from the results store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lorastudy.cli.options import DATABASE, Database
from lorastudy.cli.terminal import say


def report(
    experiment_type: Annotated[str | None, typer.Option(help="Only suites of this type.")] = None,
    suite_name: Annotated[str | None, typer.Option("--suite-name", help="Only this suite.")] = None,
    output: Annotated[Path, typer.Option(help="The Markdown file; the HTML page lies beside it.")] = Path(
        "RESULTS.md"
    ),
    database: Database = DATABASE,
) -> None:
    """Write the report: what is better, by how much, how surely, at what cost."""
    from lorastudy.report import write_report
    from lorastudy.tracker import ExperimentTracker

    with ExperimentTracker(database) as tracker:
        written = write_report(tracker, experiment_type=experiment_type, suite_name=suite_name, output=output)
    say_pages(written)
    if num_plots := sum(path.suffix == ".png" for path in written):
        say(f"wrote {num_plots} plots (PNG and SVG)")


def say_pages(written: Sequence[Path]) -> None:
    """Name the pages among the files that a report wrote."""
    for path in written:
        if path.suffix in {".md", ".html"}:
            say(f"wrote {path}")
