"""`lorastudy import`: results of other tools into the store, labelled as such."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lorastudy.cli.options import Database
from lorastudy.cli.terminal import say
from lorastudy.errors import StudyError
from lorastudy.places import DATABASE


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

    files = _files(paths)
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


def _files(paths: Sequence[Path]) -> list[Path]:
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
