"""Rebuilds the store from run folders: what a worker wrote there is all that the store knows of a run.

For folders whose worker has ended. Records that the store has already are not taken again.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from lorastudy.errors import StoreError
from lorastudy.protocol.records import DONE_NAME, PREDICTIONS_NAME, RACE_NAME, Pack, RecordReader
from lorastudy.store.tracker import ExperimentTracker

#: Where experiments go that no suite knows: run folders do not say which suite they were made for.
RECOVERED_SUITE = "recovered"


def rebuild(tracker: ExperimentTracker, folders: Sequence[Path], *, suite_name: str = RECOVERED_SUITE) -> int:
    """Replay run folders, older attempts first whatever their order; the number of records stored.

    Raises:
        StoreError: as `replay`, for the first folder that cannot be read to its end.
    """
    return sum(
        replay(tracker, folder, suite_name=suite_name)
        for folder in sorted(folders, key=lambda folder: Pack.read(folder).attempt)
    )


def replay(tracker: ExperimentTracker, folder: Path, *, suite_name: str = RECOVERED_SUITE) -> int:
    """Take every record of one run folder that is not in the store yet; the number of records stored.

    A run without an outcome is recorded as crashed. Experiments that no suite has go to `suite_name`. Times are
    those of the files.

    Raises:
        StoreError: there is no run in the folder, or its records are damaged. Those before the damage are stored.
    """
    pack = _read_pack(folder)
    records = folder / "records.jsonl"
    with tracker.at(_modified(folder / "pack.json")):
        _start(tracker, pack, folder=folder, suite_name=suite_name)
    num_stored, damage, reader = 0, dict[Path, str](), RecordReader(records)
    with tracker.at(_modified(records if records.exists() else folder / "pack.json")):
        for each in (RecordReader(folder / PREDICTIONS_NAME), reader, RecordReader(folder / RACE_NAME)):
            try:
                for record in each.read_new():
                    num_stored += tracker.take(record, pack_id=pack.id, attempt=pack.attempt)
            except ValueError as error:
                damage[each.path] = str(error)
        for experiment in pack.experiments:
            message = f"{records.name} holds no outcome: the worker was cut off"
            tracker.fail_run(experiment.id, attempt=pack.attempt, kind="crashed", message=message)
    if records not in damage and reader.has_torn_end() and (folder / DONE_NAME).exists():
        damage[records] = "its last line is cut off, although the worker had finished"
    if damage:
        said = "; ".join(f"{path}: damaged: {what}" for path, what in damage.items())
        raise StoreError(f"{said}; the records before that are stored")
    return num_stored


def _read_pack(folder: Path) -> Pack:
    try:
        return Pack.read(folder)
    except FileNotFoundError as error:
        raise StoreError(f"{folder} is not a run folder: it has no pack.json") from error


def _start(tracker: ExperimentTracker, pack: Pack, *, folder: Path, suite_name: str) -> None:
    known = tracker.known_experiments()
    tracker.register(suite_name, [e for e in pack.experiments if e.id not in known])
    for experiment in pack.experiments:
        # an attempt that is there stays as it is, and an older one has nothing to say any more
        if tracker.next_attempt([experiment.id]) <= pack.attempt:
            tracker.start_run(
                experiment.id,
                attempt=pack.attempt,
                pack_id=pack.id,
                engine=pack.engine,
                run_folder=str(folder),
            )


def _modified(file: Path) -> datetime:
    return datetime.fromtimestamp(file.stat().st_mtime, tz=UTC)
