"""Checks a store and its run folders. Names everything that differs from what was written, with a remedy.

    the file    SQLite's own check: pages, indexes, keys
    the rows    each compared with its hash
    the folders every record against its checksum, every record in the store, every adapter whole

A deliberate deletion is not damage: after you delete a run folder to save space, its numbers stay in the store.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorastudy.errors import StoreError
from lorastudy.protocol.records import PACK_NAME, RECORDS_NAME
from lorastudy.store.database import write_copy
from lorastudy.store.rebuilding import replay
from lorastudy.store.tracker import ExperimentTracker
from lorastudy.store.views import ExperimentResult

_REBUILD = "`lorastudy db rebuild` makes the store again from the run folders and from what is intact"
_WEIGHTS = "*.safetensors"
"""The file of an adapter's weights, or the files of a model's after full fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Something wrong, and what to do about it. A `note` is not damage."""

    kind: Literal["damage", "note"]
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}\n  {self.remedy}"


def examine(database: str) -> list[Observation]:
    """Everything that is wrong, the store first; empty if all is well.

    Raises:
        StoreError: there is no store, or it cannot be opened at all.
    """
    with ExperimentTracker(database) as tracker:
        found = [_damage(f"{database}: {problem}", _REBUILD) for problem in tracker.problems()]
        found += [_damage(f"{database}: {row}", _REBUILD) for row in tracker.verify()]
        if found:
            return found  # a damaged store may name the wrong folders
        results = tracker.get_all_experiments()
    return [*_running(results), *_folders(database, results)]


def _running(results: list[ExperimentResult]) -> Iterator[Observation]:
    names = sorted({result.name for result in results if result.status == "running"})
    if names:
        yield Observation(
            kind="note",
            what=f"{len(names)} experiments count as running: {', '.join(names[:5])}{', ...' if names[5:] else ''}",
            remedy="if no suite is running, `lorastudy suite` with the same file runs them again",
        )


def _folders(database: str, results: list[ExperimentResult]) -> Iterator[Observation]:
    """The damage in the folders of the current runs."""
    folders: dict[Path, list[ExperimentResult]] = {}
    for result in results:
        if result.run_folder is not None and result.status != "running":
            folders.setdefault(Path(result.run_folder), []).append(result)
    gone = [folder for folder in folders if not folder.is_dir()]
    if gone:
        yield Observation(
            kind="note",
            what=f"{len(gone)} of {len(folders)} run folders are gone, such as {gone[0]}",
            remedy="their numbers are in the store, their adapters are not; nothing need be done about it",
        )
    with _replayer(database) as replayer:
        for folder in _scoring_folders(folders):
            yield from _in_folder(folder, replayer)
        for folder in sorted(folders.keys() - set(gone)):
            yield from _in_folder(folder, replayer)
            for result in {each.experiment_id: each for each in folders[folder]}.values():
                if result.adapter_path is not None:
                    yield from _adapter(folder / result.adapter_path, name=result.name)


def _scoring_folders(folders: Iterable[Path]) -> list[Path]:
    """The folders of packs that scored stored adapters, beside those of the runs."""
    runs = {folder.parent.parent for folder in folders}
    return sorted(pack.parent for folder in runs for pack in folder.glob(f"score-*/attempt-*/{PACK_NAME}"))


@contextlib.contextmanager
def _replayer(database: str) -> Iterator[ExperimentTracker | None]:
    """A writable copy of the store; None for a server's, which cannot be copied."""
    if "://" in database:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="lorastudy-doctor-") as folder:
        target = Path(folder) / "copy.db"
        write_copy(Path(database), target)
        with ExperimentTracker(target, writable=True) as tracker:
            yield tracker


def _in_folder(folder: Path, replayer: ExperimentTracker | None) -> Iterator[Observation]:
    """Damage in one folder, and records that the store lacks."""
    if replayer is None:
        return
    if not (folder / PACK_NAME).is_file():
        yield _damage(
            f"{folder} has no {PACK_NAME}", "restore it from a backup; the store itself is not touched by it"
        )
        return
    try:
        num_missing = replay(replayer, folder)
    except StoreError as error:
        yield _damage(
            str(error),
            "the store has what it took before; restore the file from a backup, or delete the folder",
        )
        return
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        yield _damage(
            f"{folder / PACK_NAME}: {error}",
            "restore it from a backup; the store itself is not touched by it",
        )
        return
    if num_missing:
        yield _damage(f"{folder / RECORDS_NAME}: {num_missing} records of it are not in the store", _REBUILD)


def _adapter(folder: Path, *, name: str) -> Iterator[Observation]:
    remedy = "a published copy may be left in output/<name>/final_model; else restore it from a backup"
    if not folder.is_dir():
        yield _damage(f"{folder}: the adapter of {name} is gone", remedy)
        return
    files = sorted(folder.glob(_WEIGHTS))
    if not files:
        yield _damage(f"{folder}: the weights of {name} are gone", remedy)
    for weights in files:
        if not _is_whole(weights):
            yield _damage(f"{weights}: the weights of {name} are cut off or damaged", remedy)


def _is_whole(weights: Path) -> bool:
    """Whether a safetensors file is as long as its header says: 8 bytes of length, JSON with offsets, then the data."""
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = weights.stat().st_size
        if 8 + length > size:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return False
    return size == 8 + length + max(ends, default=0)


def _damage(what: str, remedy: str) -> Observation:
    return Observation(kind="damage", what=what, remedy=remedy)
