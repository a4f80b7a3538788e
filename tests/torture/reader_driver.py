"""Reads a store from many processes until its input ends: the inside of the row `readers`.

    python reader_driver.py DATABASE NUM_READERS NUM_STEPS REPORT

Imports once and forks a process for each reader, and one that writes the report if REPORT is not empty; each prints a line of JSON when it is
over: how often it read, and what went wrong.
"""

import json
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path

from lorastudy.store import ExperimentTracker
from torture.harness import tried


def main() -> None:
    """Fork, and wait for all."""
    database, num_readers, num_steps, output = sys.argv[1:]
    kinds: list[tuple[str, Callable[[], None]]] = [("rows", lambda: read(database, int(num_steps)))]
    kinds *= int(num_readers)
    if output:
        kinds.append(("report", lambda: report(database, output)))
    children = [child for kind, once in kinds if (child := os.fork()) or again_and_again(kind, once)]
    print(json.dumps({"ready": len(children)}), flush=True)
    for child in children:
        os.waitpid(child, 0)


def again_and_again(kind: str, once: Callable[[], None]) -> None:
    """Read until standard input is closed, at least once; then say how that went and end the process."""
    num_reads, wrong = 0, []
    while True:
        error = tried(once)
        if error is None:
            num_reads += 1
        else:
            wrong.append(f"{kind}: {error!r}")
        if select.select([sys.stdin], [], [], 0)[0]:
            break
    line = json.dumps({"kind": kind, "num_reads": num_reads, "wrong": wrong[:20], "num_wrong": len(wrong)})
    os.write(1, f"{line}\n".encode())
    os._exit(0)


def report(database: str, output: str) -> None:
    """Write the report, as the command does."""
    from lorastudy.report import write_report

    with ExperimentTracker(database) as tracker:
        write_report(tracker, output=Path(output))


def read(database: str, num_steps: int) -> None:
    """Read everything of what is completed; nothing of it may be missing."""
    with ExperimentTracker(database) as tracker:
        for result in tracker.get_all_experiments(status="completed"):
            assert len(tracker.get_steps(result.experiment_id)) == num_steps, "steps are missing"
            for split, metric in result.scores:
                values, _ = tracker.get_items(result.experiment_id, split=split, metric=metric)
                assert len(values) == result.scores[split, metric].num_items, "items are missing"


if __name__ == "__main__":
    main()
