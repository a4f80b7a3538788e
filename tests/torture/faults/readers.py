"""Many read the store while a suite writes it: `status`, `report`, and programs that ask again and again.

Nobody may be told that the database is locked, and nobody may see half of a record. Why that holds: the writer keeps
a write-ahead log, in which readers and the writer do not wait for each other; where that cannot be had (a network
file system), and for the moments in which the log is made or cleared away, each waits for the other for up to 30 s.
"""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

from lorastudy.executors import LocalExecutor
from lorastudy.running.phase_runner import RunOptions
from lorastudy.store import ExperimentTracker
from planned import run_experiments
from torture import studies
from torture.harness import FaultResult, Row, listed, tried

ROW = Row(
    fault="8 readers and a report during a running suite, for so many seconds",
    must='no "database is locked", no half of a record',
    short=2,
    default=60,
    kept=600,
)
NUM_READERS = 8
#: Shorter runs are for the tests' sake, which share their machine: two readers, and no report.
SECONDS_FOR_ALL = 30
NUM_STEPS = 3

HERE = Path(__file__).resolve().parents[1]
DRIVER = HERE / "reader_driver.py"


def run(*, amount: int, seed: int, folder: Path) -> FaultResult:
    """Write one suite after another for `amount` seconds, while others read."""
    database = folder / studies.DATABASE
    write_suite(folder, first_data_seed=0)
    report = folder / "report" / "RESULTS.md" if amount >= SECONDS_FOR_ALL else ""
    num_readers = NUM_READERS if report else 2
    readers = subprocess.Popen(
        [sys.executable, str(DRIVER), str(database), str(num_readers), str(NUM_STEPS), str(report)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
        env=studies.environment(PYTHONPATH=f"{studies.SOURCE}:{HERE.parent}"),
    )  # fmt: skip
    assert readers.stdout is not None
    readers.stdout.readline()  # all are there
    failure = tried(lambda: write(folder, seconds=amount))
    answers = [json.loads(line) for line in readers.communicate()[0].splitlines()]
    assert len(answers) == num_readers + bool(report)
    wrong = [] if failure is None else [f"writer: {failure!r}"]
    wrong += [said for answer in answers for said in answer["wrong"]]
    with ExperimentTracker(database) as tracker:
        num_completed = len(tracker.get_all_experiments(status="completed"))
        wrong += [str(row) for row in tracker.verify()]
    num_reads = {
        kind: sum(each["num_reads"] for each in answers if each["kind"] == kind)
        for kind in ("rows", "report")
    }
    detail = f"{num_reads['rows']} reads and {num_reads['report']} reports while {num_completed} experiments were written"
    return FaultResult(
        fault=ROW.fault,
        num_faults=amount,
        num_violations=len(wrong),
        detail="; ".join(filter(None, [detail, listed(wrong)])),
    )


def write(folder: Path, *, seconds: float) -> None:
    """Open, run a suite of its own and close, again and again: opening and closing are the moments that lock."""
    end = time.monotonic() + seconds
    for number in itertools.count(1):
        write_suite(folder, first_data_seed=number)
        if time.monotonic() >= end:
            return


def write_suite(folder: Path, *, first_data_seed: int) -> None:
    """One pack of two arms."""
    with ExperimentTracker(folder / studies.DATABASE, writable=True) as tracker:
        run_experiments(
            studies.experiments(num_packs=1, first_data_seed=first_data_seed),
            suite_name=studies.SUITE,
            tracker=tracker,
            executor=LocalExecutor(worker=(str(studies.SCRIPTED_WORKER),)),
            options=RunOptions(runs=folder / "results" / "runs", output=folder / "output"),
        )
