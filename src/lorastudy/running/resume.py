"""Leftovers of earlier attempts: records to store, checkpoints to resume from, and checkpoints to delete."""

import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from lorastudy.planning.done import is_current
from lorastudy.protocol.records import RECORDS_NAME, Outcome, Pack, RecordReader
from lorastudy.protocol.run_folder import CHECKPOINTS_NAME, checkpoint_folders
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment


def take_what_was_left(experiments: Sequence[Experiment], *, tracker: ExperimentTracker) -> bool:
    """Store the records that workers wrote before their runner was killed, and end those runs as interrupted.

    Returns whether there were such runs.
    """
    open_runs: dict[tuple[str, int, str], list[str]] = defaultdict(list)
    for run in tracker.get_runs([experiment.id for experiment in experiments]):
        if run.status == "running":
            open_runs[run.pack_id, run.attempt, run.run_folder].append(run.experiment_id)
    for (pack_id, attempt, folder), ids in open_runs.items():
        # Records after a damaged line are lost. Their experiments run again.
        with suppress(ValueError):
            for record in RecordReader(Path(folder) / RECORDS_NAME).read_new():
                tracker.take(record, pack_id=pack_id, attempt=attempt)
        for experiment_id in ids:
            cut_off = Outcome(experiment_id=experiment_id, status="stopped", message="the suite was cut off")
            tracker.take(cut_off, pack_id=pack_id, attempt=attempt)
    return bool(open_runs)


def with_checkpoints(folders: Iterable[Path]) -> tuple[Path, ...]:
    """The run folders that hold a checkpoint."""
    return tuple(folder for folder in folders if checkpoint_folders(folder / CHECKPOINTS_NAME))


def release_checkpoints(
    experiments: Sequence[Experiment], *, tracker: ExperimentTracker, pruned: Collection[str]
) -> None:
    """Remove the checkpoints of attempts whose experiments are all completed or pruned. Nothing resumes from them."""
    runs = tracker.get_runs([experiment.id for experiment in experiments])
    folders = with_checkpoints(dict.fromkeys(Path(run.run_folder) for run in runs))
    members = {folder: {experiment.id for experiment in Pack.read(folder).experiments} for folder in folders}
    completed = tracker.completed(sorted(set().union(*members.values())))
    over = {key for key, environment in completed.items() if is_current(environment)}.union(pruned)
    for folder, ids in members.items():
        if ids <= over:
            shutil.rmtree(folder / CHECKPOINTS_NAME, ignore_errors=True)
