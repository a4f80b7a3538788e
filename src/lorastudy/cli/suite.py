"""`lorastudy suite`: run all experiments of a suite file, or show what would run."""

from pathlib import Path
from typing import Annotated

import typer

from lorastudy.cli.options import DATABASE, OUTPUT_DIR, RUNS_DIR, Config, Database, OutputDir, RunsDir
from lorastudy.errors import StudyError


def suite(
    file: Annotated[Path | None, typer.Argument(help="Suite file (YAML).")] = None,
    suite: Annotated[Path | None, typer.Option("--suite", help="The same as FILE.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and run nothing.")] = False,
    continue_on_error: Annotated[
        bool, typer.Option("--continue-on-error", help="Start further experiments after one has failed.")
    ] = False,
    config: Config = None,
    database: Database = DATABASE,
    runs_dir: RunsDir = RUNS_DIR,
    output_dir: OutputDir = OUTPUT_DIR,
) -> None:
    """Run a suite: all its experiments, together on one base model; what is done already is not run again."""
    from lorastudy.cli.running import experiments_of, run_experiments, show_plan
    from lorastudy.runner import Plan
    from lorastudy.spec.loading import load_suite

    path = _one_of(file, suite)
    loaded = load_suite(path, defaults=config)
    experiments = experiments_of(loaded)
    if dry_run:
        show_plan(loaded, experiments, database=database)
        return
    plan = Plan(runs=runs_dir, output=output_dir, continue_on_error=continue_on_error)
    run_experiments(loaded, experiments, database=database, plan=plan)
    print("next: lorastudy report")


def _one_of(file: Path | None, option: Path | None) -> Path:
    if (file is None) == (option is None):
        raise StudyError("give one suite file: `lorastudy suite FILE`, or `--suite FILE`")
    path = file or option
    assert path is not None
    return path
