"""`lorastudy demo`: a rank study on the small model inside the package, on a CPU and without a network."""

from lorastudy.cli.options import Database, OutputDir, ReportFile, RunsDir
from lorastudy.cli.report import say_report
from lorastudy.places import DATABASE, OUTPUT_DIR, REPORT, RUNS_DIR


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
        written = save_report(found, tracker, output=output)
    say_report(found, written)
