"""Rebuilds a store from the run folders, and from the intact rows of the old store.

Run folders come first, because they hold every record of a worker with its checksum. The old store adds what run
folders do not hold: suites, times, how stopped runs ended, and runs whose folder is gone. It is kept beside the new
one.

Only folders whose worker has ended may be replayed. A record that the store already has is not stored again.

A note on a suite lies beside its run folders and is written whenever the suite begins. It holds the facts that run folders
lack, so a store can be rebuilt from the runs folder alone, with the suite's name, its order, and the experiments that have not
run yet.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lorastudy.errors import StoreError
from lorastudy.protocol.files import replacing
from lorastudy.protocol.records import (
    DONE_NAME,
    PACK_NAME,
    PREDICTIONS_NAME,
    RACE_NAME,
    RECORDS_NAME,
    Pack,
    RecordReader,
)
from lorastudy.protocol.scoring import AddedScore
from lorastudy.store import schema
from lorastudy.store.database import UnreleasedStoreError, free_name
from lorastudy.store.lock import FileLock
from lorastudy.store.rows import OF_RUNS, OF_SUITES, Salvage
from lorastudy.store.tracker import ExperimentTracker
from lorastudy.store.views import DamagedRow, ExperimentResult, StatedQuestion, StoredDecision
from lorastudy.suite.experiment import Experiment, tagged_hash
from lorastudy.suite.question import Question

#: The suite of experiments that no suite names: run folders do not name their suite.
RECOVERED_SUITE = "recovered"

#: The files that SQLite may keep beside a store that was not closed.
_COMPANIONS = ("", "-wal", "-journal", "-shm")

NOTE_VERSION = 1
_FOLDER = "suites"


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """The sources of a new store, and the losses."""

    num_records: int
    num_salvaged_rows: int
    problems: tuple[str, ...]
    backup: Path | None


def rebuild_store(database: Path, *, runs: Path) -> Rebuilt:
    """Replace the old store by a new one, and rename the old one. `problems` is empty if nothing is missing.

    Raises:
        StoreError: another process writes the store, another version wrote it, or there is nothing to rebuild from.
    """
    folders = sorted((file.parent for file in runs.glob(f"*/*/{PACK_NAME}")), key=str)
    if not folders and not database.exists():
        raise StoreError(
            f"{runs} holds no run folders and {database} is not there: nothing to make a store of"
        )
    database.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(database)
    fresh = database.with_name(f"{database.name}.rebuilding")
    try:
        fresh.unlink(missing_ok=True)
        with ExperimentTracker(fresh, writable=True) as tracker:
            num_records, salvaged, problems = _fill(tracker, database, folders=folders, runs=runs)
        backup = _set_aside(database)
        fresh.rename(database)
    finally:
        lock.release()
    return Rebuilt(
        num_records=num_records, num_salvaged_rows=salvaged, problems=tuple(problems), backup=backup
    )


def _fill(
    tracker: ExperimentTracker, database: Path, *, folders: Sequence[Path], runs: Path
) -> tuple[int, int, list[str]]:
    problems = list(register_noted(tracker, runs=runs))
    old = _opened(database, problems)
    try:
        suites = tracker.salvage(old, tables=OF_SUITES) if old else Salvage()
        num_records = _replay_all(tracker, folders, problems=problems)
        of_runs = tracker.salvage(old, tables=OF_RUNS) if old else Salvage()
        is_cut_short = bool(old and old.problems())
    finally:
        if old:
            old.close()
    lost = [row for row in (*suites.damaged, *of_runs.damaged) if not tracker.holds(row)]
    problems += [f"could not be brought back: {row}" for row in lost]
    problems += _distrusted(tracker, lost, is_cut_short=is_cut_short)
    return num_records, suites.num_rows + of_runs.num_rows, problems


def _opened(database: Path, problems: list[str]) -> ExperimentTracker | None:
    """The old store; None if there is none or nothing in it can be read.

    Raises:
        StoreError: it belongs to another version or another program, and must not be replaced.
    """
    if not database.exists() or database.stat().st_size == 0:
        return None
    try:
        return ExperimentTracker(database)
    except UnreleasedStoreError:
        problems += _only_in(database)
        return None
    except StoreError as error:
        if error.__cause__ is None:  # our own refusal, not an error of the database
            raise
        problems.append(f"nothing of the old store could be read: {error}")
        return None


def _only_in(unreleased: Path) -> list[str]:
    """The contents of a store from before the first release that no run folder has."""
    with contextlib.closing(sqlite3.connect(unreleased)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
        folders = [Path(name) for (name,) in connection.execute("SELECT DISTINCT run_folder FROM runs")]
        imports = list(connection.execute("SELECT tool, file FROM imports")) if "imports" in tables else []
    gone = [folder for folder in folders if not folder.is_dir()]
    problems = [
        f"results from {file} ({tool}) are in the old store alone: import them again"
        for tool, file in imports
    ]
    if gone:
        problems.append(
            f"{len(gone)} of {len(folders)} run folders are gone, such as {gone[0]}: their results are in the old store alone"
        )
    return problems


def _replay_all(tracker: ExperimentTracker, folders: Sequence[Path], *, problems: list[str]) -> int:
    """Replay all folders, older attempts first and scoring last; return the number of records.

    A damaged folder gives the records before the damage.
    """
    packs = []
    for folder in folders:
        try:
            packs.append((_order(folder), folder))
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            problems.append(f"{folder / PACK_NAME}: damaged: {error}")
    num_records = 0
    for _, folder in sorted(packs, key=lambda pack: pack[0]):
        try:
            num_records += replay(tracker, folder)
        except StoreError as error:
            problems.append(str(error))
    return num_records


def _distrusted(tracker: ExperimentTracker, lost: Sequence[DamagedRow], *, is_cut_short: bool) -> list[str]:
    """Mark completed runs as failed if they may lack results, so that they run again. Return the problems.

    If the damage names no completed run, this affects every run whose folder is gone.
    """
    # A lost added score is measured again on the stored adapter. The run itself lacks nothing.
    of_runs = [row for row in lost if row.table != schema.added_scores.name]
    owners = {(row.key.get("experiment_id"), row.key.get("attempt")) for row in of_runs}
    completed = tracker.get_all_experiments(status="completed")
    is_anybodys = is_cut_short or not owners <= {(each.experiment_id, each.attempt) for each in completed}
    problems = []
    for each in {each.experiment_id: each for each in completed}.values():
        is_gone = not Path(each.run_folder or "").is_dir()
        if (each.experiment_id, each.attempt) in owners or (is_anybodys and is_gone):
            assert each.attempt is not None
            tracker.distrust(each.experiment_id, attempt=each.attempt)
            problems.append(
                f"{each.suite_name}/{each.name} ({each.experiment_id}) counts as failed: it may lack results"
            )
    return problems


def _set_aside(database: Path) -> Path | None:
    """Rename the old store and its companion files; None if there is no store."""
    if not database.exists():
        return None
    backup = free_name(database, kind="before-rebuild")
    for companion in _COMPANIONS:
        file = database.with_name(database.name + companion)
        if file.exists():
            file.rename(backup.with_name(backup.name + companion))
    return backup


def rebuild(tracker: ExperimentTracker, folders: Sequence[Path], *, suite_name: str = RECOVERED_SUITE) -> int:
    """Replay run folders, older attempts first; return the number of records stored.

    Raises:
        StoreError: as `replay`, for the first folder that cannot be read to its end.
    """
    return sum(replay(tracker, folder, suite_name=suite_name) for folder in sorted(folders, key=_order))


def _order(folder: Path) -> tuple[bool, int]:
    """Scoring comes after training, since its scores belong to completed runs; then by attempt."""
    pack = Pack.read(folder)
    return pack.scoring is not None, pack.attempt


def replay(tracker: ExperimentTracker, folder: Path, *, suite_name: str = RECOVERED_SUITE) -> int:
    """Store every record of one run folder that the store lacks; return their number.

    A run without an outcome is recorded as crashed. Experiments that no suite names go to `suite_name`. Times are those
    of the files.

    Raises:
        StoreError: there is no run in the folder, or its records are damaged. The records before the damage are stored.
    """
    pack = _read_pack(folder)
    if pack.scoring is not None:
        return _replay_scores(tracker, pack, folder=folder)
    records = folder / "records.jsonl"
    with tracker.at(_modified(folder / "pack.json")):
        _start(tracker, pack, folder=folder, suite_name=suite_name)
    num_stored, damage, reader = 0, dict[Path, str](), RecordReader(records)
    with tracker.at(_modified(records if records.exists() else folder / "pack.json")):
        for source in (RecordReader(folder / PREDICTIONS_NAME), reader, RecordReader(folder / RACE_NAME)):
            try:
                for record in source.read_new():
                    num_stored += tracker.take(record, pack_id=pack.id, attempt=pack.attempt)
            except ValueError as error:
                damage[source.path] = str(error)
        for experiment in pack.experiments:
            message = f"{records.name} holds no outcome: the worker was cut off"
            tracker.fail_run(experiment.id, attempt=pack.attempt, kind="crashed", message=message)
    if records not in damage and reader.has_torn_end() and (folder / DONE_NAME).exists():
        damage[records] = "its last line is cut off, although the worker had finished"
    if damage:
        faults = "; ".join(f"{path}: damaged: {what}" for path, what in damage.items())
        raise StoreError(f"{faults}; the records before that are stored")
    return num_stored


def _replay_scores(tracker: ExperimentTracker, pack: Pack, *, folder: Path) -> int:
    """Store the scores of a scoring pack that the store lacks; return their number.

    Raises:
        StoreError: the records are damaged. Those before the damage are stored.
    """
    num_stored, reader = 0, RecordReader(folder / RECORDS_NAME)
    try:
        for record in reader.read_new():
            if isinstance(record, AddedScore):
                num_stored += tracker.take(record, pack_id=pack.id, attempt=pack.attempt)
    except ValueError as error:
        raise StoreError(f"{reader.path}: damaged: {error}; the records before that are stored") from error
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
        # A stored attempt stays unchanged, and an older one no longer counts.
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


def keep_note(tracker: ExperimentTracker, suite_name: str, *, runs: Path) -> Path:
    """Write the store's facts about a suite into `<runs>/suites`; return the file."""
    summary = next(suite for suite in tracker.get_suites() if suite.suite_name == suite_name)
    body = {
        "format": NOTE_VERSION,
        "suite_name": suite_name,
        "description": summary.description,
        "created_at": summary.created_at,
        "questions": [
            {
                "question": stated.question.to_json(),
                "stated_at": stated.stated_at,
                "num_completed": stated.num_completed,
            }
            for stated in summary.questions
        ],
        "design": tracker.get_designs().get(suite_name),
        "decisions": [vars(decision) for decision in tracker.get_decisions(suite_name)],
        "experiments": [_plain(result) for result in tracker.get_all_experiments(suite_name=suite_name)],
    }
    # The name is a hash, because a suite's name may hold any character.
    file = runs / _FOLDER / f"{tagged_hash('suite', suite_name)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as fresh:
        fresh.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return file


def register_noted(tracker: ExperimentTracker, *, runs: Path) -> Iterator[str]:
    """Register every suite with a note, the oldest first; yield the problem of each unreadable note."""
    notes = []
    for file in sorted((runs / _FOLDER).glob("*.json")):
        try:
            body = json.loads(file.read_text(encoding="utf-8"))
            members = [Experiment.from_json(values) for values in body["experiments"]]
            stated = [
                StatedQuestion(**{**values, "question": Question.from_json(values["question"])})
                for values in body.get("questions", ())
            ]
            about = (body["suite_name"], body["description"], body.get("design"))
            decided = [StoredDecision(**values) for values in body.get("decisions", ())]
            notes.append((body["created_at"], about, members, (stated, decided)))
        except (ValueError, KeyError, TypeError) as error:
            yield f"{file}: not a suite's note: {error}"
    for created_at, about, members, (questions, decisions) in sorted(
        notes, key=lambda note: (note[0], note[1][0])
    ):
        suite_name, description, design = about
        with tracker.at(datetime.fromisoformat(created_at)):
            tracker.register(suite_name, members, description=description)
        if design is not None:
            tracker.keep_design(suite_name, design)
        for question in questions:
            with tracker.at(datetime.fromisoformat(question.stated_at)):
                tracker.state_question(suite_name, question.question, num_completed=question.num_completed)
        for decision in decisions:
            tracker.keep_decision(suite_name, decision)


def _plain(result: ExperimentResult) -> dict[str, object]:
    """The experiment in the form that `Experiment.from_json` reads."""
    names = ("name", "arm", "experiment_type", "seed", "settings", "sources")
    return {name: getattr(result, name) for name in names}
