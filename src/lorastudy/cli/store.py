"""Commands on the results store: `status`, `export`, `import`, `doctor`, and `db` for the store as a file."""

import sys
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorastudy.cli.options import Database, RunsDir
from lorastudy.cli.terminal import failure_shown, say
from lorastudy.errors import StoreError, StudyError
from lorastudy.places import DATABASE, RUNS_DIR

if TYPE_CHECKING:
    from lorastudy.store.views import ExperimentResult


def status(database: Database = DATABASE) -> None:
    """Count experiments by suite and status, and name those that failed."""
    from lorastudy.stats.study import labels_by_experiment
    from lorastudy.store import ExperimentTracker
    from lorastudy.suite.labels import with_seed

    with ExperimentTracker(database) as tracker:
        results = tracker.get_all_experiments()
        imported = Counter((result.suite_name, result.tool) for result in tracker.get_imported())
        labels = labels_by_experiment(results, tracker.get_suites())
    by_suite: dict[str, Counter[str]] = {}
    for result in results:
        by_suite.setdefault(result.suite_name, Counter())[_standing(result)] += 1
    for suite_name, counts in by_suite.items():
        say(f"{suite_name}: {', '.join(f'{count} {name}' for name, count in sorted(counts.items()))}")
    for result in results:
        if result.status == "failed":
            message = failure_shown(result.failure_message or "no message was recorded")
            say(
                f"  failed: {result.suite_name}: {with_seed(labels[result.experiment_id], result.seed)}: {result.failure_kind}: {message}"
            )
    for (suite_name, tool), number in imported.items():
        say(f"{suite_name}: {number} imported from {tool}")
    if not results and not imported:
        say(f"{database} holds no experiments")


def _standing(result: "ExperimentResult") -> str:
    """The status as a reader understands it: racing stops an arm for good, an interrupted run can be resumed."""
    if result.was_pruned:
        return "stopped by racing"
    return "interrupted" if result.status == "stopped" else result.status


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


def import_results(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="JSON files of PEFT's method_comparison or their folder; or a CSV, Parquet or JSONL table."
        ),
    ],
    suite_name: Annotated[
        str | None,
        typer.Option("--suite-name", help="Suite of the results; by default the name of the file or folder."),
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(help="YAML that says what a table's columns mean: columns, constants, metrics."),
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="KEY=COLUMN, such as lora_rank=rank; may be repeated.")
    ] = None,
    constant: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE for every row, such as base_model=org/model.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="COLUMN:higher or COLUMN:lower, with :ITEMS for a share of items; the first is the primary."
        ),
    ] = None,
    num_items: Annotated[
        int | None, typer.Option(help="Test items of PEFT files; by default GSM8K's.", min=1)
    ] = None,
    database: Database = DATABASE,
) -> None:
    """Add results of other tools to the store, apart from your own runs. Importing a file twice adds nothing."""
    from lorastudy.imports.peft import NUM_GSM8K_TEST_ROWS, read_peft
    from lorastudy.imports.table import read_mapping, read_table
    from lorastudy.store import ExperimentTracker
    from lorastudy.suite.suite import name_problem

    files = _files_of(paths)
    name = suite_name or paths[0].stem
    if (cause := name_problem(name)) is not None:
        raise StudyError(f"--suite-name: {cause}")
    is_table = [file.suffix.lower() != ".json" for file in files]
    if any(is_table) and not all(is_table):
        raise StudyError("give JSON files of PEFT's method_comparison, or one table; not both at once")
    if all(is_table):
        meaning = read_mapping(mapping, columns=column or (), constants=constant or (), metrics=metric or ())
        tables = [read_table(file, suite_name=name, mapping=meaning) for file in files]
        results = [result for table in tables for result in table.results]
        unused = dict.fromkeys(column for table in tables for column in table.unused_columns)
    else:
        results, unused = read_peft(files, suite_name=name, num_items=num_items or NUM_GSM8K_TEST_ROWS), {}
    with ExperimentTracker(database, writable=True) as tracker:
        added = tracker.add_imported(results)
    say(f"{name}: {len(results)} results read, {added} new, {len(results) - added} already there")
    diverged = sum(result.is_diverged for result in results)
    if diverged:
        say(f"{diverged} of them diverged: no usable value of the first metric")
    if unused:
        say(f"columns not used, because no option and no mapping names them: {', '.join(unused)}")
    say(f"next: lorastudy report --suite-name {name}")


def _files_of(paths: Sequence[Path]) -> list[Path]:
    """The named files, and the JSON files of each named folder, sorted by name."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(path.glob("*.json"))
            if not inside:
                raise StudyError(f"{path}: holds no JSON files")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise StudyError(f"{path}: there is no such file or folder")
    return files


def doctor(database: Database = DATABASE) -> None:
    """Check every row, record and adapter. Name what is damaged and the remedy. Exit code 1 if something is damaged."""
    from lorastudy.report.numbers import plural
    from lorastudy.store.doctor import examine

    findings = examine(database)
    for finding in findings:
        say(finding)
    num_damages = sum(finding.kind == "damage" for finding in findings)
    if num_damages:
        say(f"{database}: {plural(num_damages, 'damage')}")
        raise typer.Exit(1)
    say(f"{database}: sound; every row, record and adapter is what was written")


db = typer.Typer(name="db", help="Back up, upgrade or rebuild the results store.", no_args_is_help=True)


@db.command()
def backup(
    database: Database = DATABASE,
    into: Annotated[
        Path | None, typer.Option(help="The copy; without it a free name beside the store.")
    ] = None,
) -> None:
    """Copy the store, also while a suite is running, and check the copy."""
    from lorastudy.store.database import back_up, write_copy

    file = _sqlite_file(database)
    if into is None:
        target = back_up(file, kind="copy")
    elif into.exists():
        raise StoreError(f"--into: {into} already exists")
    else:
        target = into
        write_copy(file, target)
    say(f"wrote {target}")


@db.command()
def upgrade(database: Database = DATABASE) -> None:
    """Upgrade the store to this version, after a backup. A current store is not changed."""
    from lorastudy.store import ExperimentTracker
    from lorastudy.store.schema import HEAD_REVISION

    if "://" not in database:
        _sqlite_file(database)
    ExperimentTracker(database, writable=True).close()
    say(f"{database} has revision {HEAD_REVISION}")


@db.command()
def rebuild(database: Database = DATABASE, runs_dir: RunsDir = RUNS_DIR) -> None:
    """Rebuild the store from the run folders and from its intact rows. The old store is kept beside it."""
    from lorastudy.store.rebuilding import rebuild_store

    if "://" in database:
        raise StoreError(
            f"--database: {database} is on a database server: restore it from its own backups (pg_dump, pg_restore)"
        )
    rebuilt = rebuild_store(Path(database), runs=runs_dir)
    say(
        f"{database}: {rebuilt.num_records} records from run folders, {rebuilt.num_salvaged_rows} rows from the old store"
    )
    if rebuilt.backup is not None:
        say(f"the old store: {rebuilt.backup}")
    for problem in rebuilt.problems:
        say(f"damage: {problem}", file=sys.stderr)
    if rebuilt.problems:
        say(
            "`lorastudy suite` with the same file runs the experiments without results again",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _sqlite_file(database: str) -> Path:
    """The SQLite file.

    Raises:
        StoreError: it is a server's database, or it does not exist.
    """
    if "://" in database:
        raise StoreError(
            f"--database: {database} is on a database server: back it up with its own tools (pg_dump)"
        )
    if not Path(database).is_file():
        raise StoreError(f"--database: {database}: there is no results store here")
    return Path(database)
