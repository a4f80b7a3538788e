"""`lorastudy resume`: continue unfinished suites, from the store alone or from a suite file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorastudy.cli.options import Config, ContinueOnError, Database, OutputDir, RunsDir
from lorastudy.cli.report import say_results
from lorastudy.cli.terminal import say
from lorastudy.places import DATABASE, OUTPUT_DIR, RUNS_DIR

if TYPE_CHECKING:
    from lorastudy.planning.unfinished import UnfinishedSuite


def resume(
    suite: Annotated[
        str | None,
        typer.Argument(help="A suite's name or file; without it, every suite of the store with work left."),
    ] = None,
    continue_on_error: ContinueOnError = False,
    config: Config = None,
    database: Database = DATABASE,
    runs_dir: RunsDir = RUNS_DIR,
    output_dir: OutputDir = OUTPUT_DIR,
) -> None:
    """Run the missing experiments of unfinished suites. Each pack resumes from its newest intact checkpoint."""
    from lorastudy.cli.running import run_experiments
    from lorastudy.running.phase_runner import RunOptions

    options = RunOptions(runs=runs_dir, output=output_dir, continue_on_error=continue_on_error)
    work = _work(suite, config=config, database=database)
    if not work:
        say("nothing to resume: no suite of the store has work left")
    for unfinished in work:
        name, registered = unfinished.suite.name, unfinished.registered
        say(name if registered is None else f"{name}: {len(registered)} experiments")
        design = run_experiments(unfinished.suite, database=database, options=options, registered=registered)
        say_results(name, experiments=design.experiments, database=database, output_dir=output_dir)


def _work(suite: str | None, *, config: Path | None, database: str) -> "list[UnfinishedSuite]":
    """The suites to resume: the one in the file, else those of the store."""
    from lorastudy.planning.unfinished import UnfinishedSuite, unfinished_suites
    from lorastudy.store import ExperimentTracker
    from lorastudy.suite.suite_file import load_suite

    if suite is not None and (Path(suite).is_file() or Path(suite).suffix in {".yaml", ".yml"}):
        return [UnfinishedSuite(suite=load_suite(Path(suite), defaults=config))]
    with ExperimentTracker(database) as tracker:
        return unfinished_suites(
            tracker,
            database=database,
            name=suite,
            on_skip=lambda line: say(f"note: {line}", file=sys.stderr),
        )
