"""`lorastudy suite`: run all experiments of a suite file, or show what would run; and `lorastudy demo`, a ready suite."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorastudy.cli.options import Config, ContinueOnError, Database, OutputDir, ReportFile, RunsDir
from lorastudy.cli.report import say_report, say_results
from lorastudy.errors import StudyError
from lorastudy.places import DATABASE, OUTPUT_DIR, REPORT, RUNS_DIR

if TYPE_CHECKING:
    from lorastudy.executors import Executor


class ExecutorName(StrEnum):
    """Where packs train."""

    local = "local"
    ray = "ray"


def suite(
    file: Annotated[Path | None, typer.Argument(help="Suite file (YAML).")] = None,
    suite: Annotated[Path | None, typer.Option("--suite", help="The same as FILE.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and run nothing.")] = False,
    continue_on_error: ContinueOnError = False,
    config: Config = None,
    database: Database = DATABASE,
    runs_dir: RunsDir = RUNS_DIR,
    output_dir: OutputDir = OUTPUT_DIR,
    executor: Annotated[
        ExecutorName, typer.Option(help="Where packs train: here, or on the nodes of a Ray cluster.")
    ] = ExecutorName.local,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Address of the Ray cluster; by default a running one, else a new one on this machine."
        ),
    ] = None,
    ray_num_cpus: Annotated[float, typer.Option(help="CPUs of a pack's Ray task.", min=0)] = 1.0,
    ray_num_gpus: Annotated[
        float | None,
        typer.Option(help="GPUs of a pack's Ray task, such as 0.5; by default 1 if there are any.", min=0),
    ] = None,
) -> None:
    """Run all experiments of a suite together on one base model. Finished experiments are not run again."""
    from lorastudy.cli.plan_output import show_plan
    from lorastudy.cli.running import planned_only, run_experiments
    from lorastudy.running.phase_runner import RunOptions
    from lorastudy.suite.suite_file import load_suite

    path = _one_of(file, suite)
    loaded = load_suite(path, defaults=config)
    if dry_run:
        show_plan(planned_only(loaded, database=database))
        return
    options = RunOptions(runs=runs_dir, output=output_dir, continue_on_error=continue_on_error)
    workers = _executor(executor, address=ray_address, num_cpus=ray_num_cpus, num_gpus=ray_num_gpus)
    design = run_experiments(loaded, database=database, options=options, executor=workers)
    say_results(loaded.name, experiments=design.experiments, database=database, output_dir=output_dir)


def _executor(
    name: ExecutorName, *, address: str | None, num_cpus: float, num_gpus: float | None
) -> "Executor | None":
    """The requested executor; None for this machine's, which depends on the suite."""
    if name is ExecutorName.local:
        if address is not None:
            raise StudyError("--ray-address: works only with --executor ray")
        return None
    from lorastudy.executors.ray import RayExecutor

    return RayExecutor(address=address, num_cpus=num_cpus, num_gpus=num_gpus)


def _one_of(file: Path | None, option: Path | None) -> Path:
    if (file is None) == (option is None):
        raise StudyError("give one suite file: `lorastudy suite FILE`, or `--suite FILE`")
    path = file or option
    assert path is not None
    return path


def demo(
    output: ReportFile = REPORT,
    database: Database = DATABASE,
    runs_dir: RunsDir = RUNS_DIR,
    output_dir: OutputDir = OUTPUT_DIR,
) -> None:
    """Train several ranks with several seeds at once on the lab's model, and write the report."""
    from lorastudy import lab
    from lorastudy.cli.running import run_experiments
    from lorastudy.report import read_report, save_report
    from lorastudy.running.phase_runner import RunOptions
    from lorastudy.store import ExperimentTracker
    from lorastudy.suite.suite_file import load_suite

    suite = load_suite(lab.demo_suite())
    options = RunOptions(runs=runs_dir, output=output_dir)
    run_experiments(suite, database=database, options=options)
    with ExperimentTracker(database) as tracker:
        found = read_report(tracker, suite_name=suite.name)
        written = save_report(found, tracker, output=output, with_answers=True)
    say_report(found, written, chart=True)
