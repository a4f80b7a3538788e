"""`lorastudy export`: the results as one JSON or CSV file."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lorastudy.cli.options import Database
from lorastudy.cli.terminal import say
from lorastudy.places import DATABASE


class ExportFormat(StrEnum):
    """The kind of file to write."""

    json = "json"
    csv = "csv"


def export(
    file_format: Annotated[
        ExportFormat,
        typer.Option("--format", help="json: all that was measured; csv: a line per experiment."),
    ] = ExportFormat.json,
    output: Annotated[
        Path | None, typer.Option(help="The file; by default results.json or results.csv.")
    ] = None,
    suite_name: Annotated[str | None, typer.Option("--suite-name", help="Only this suite.")] = None,
    database: Database = DATABASE,
) -> None:
    """Write experiments, settings and scores to a file without secrets or personal paths."""
    from lorastudy.errors import StudyError
    from lorastudy.store import ExperimentTracker

    path = output or Path(f"results.{file_format}")
    with ExperimentTracker(database) as tracker:
        number = len(tracker.get_all_experiments(suite_name=suite_name))
        if number == 0:
            where = "" if suite_name is None else f" in suite {suite_name!r}"
            raise StudyError(f"{database} holds no experiment{where}; `lorastudy status` lists what it holds")
        write = tracker.export_to_json if file_format is ExportFormat.json else tracker.export_to_csv
        write(path, suite_name=suite_name)
    say(f"wrote {path}: {number} experiments")
