"""`lorastudy report`: RESULTS.md, its plots and an HTML page from the results store."""

from pathlib import Path
from typing import Annotated

import typer

from lorastudy.cli.ending import say_report
from lorastudy.cli.options import DATABASE, Database


def report(
    experiment_type: Annotated[str | None, typer.Option(help="Only suites of this type.")] = None,
    suite_name: Annotated[
        str | None,
        typer.Option(
            "--suite-name", help="Only this suite; without it, all of the store, the last one first."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="The arm of imported results that the others are compared with; by default with the best."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="The Markdown file; the HTML page lies beside it.")] = Path(
        "RESULTS.md"
    ),
    database: Database = DATABASE,
) -> None:
    """Write the report: what is better, by how much, how surely, at what cost."""
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
        written = save_report(found, tracker, output=output)
    say_report(found, written)
