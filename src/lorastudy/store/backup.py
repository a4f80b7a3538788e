"""A copy of an SQLite store that can be trusted: taken while it is in use, read through, and only then given its name."""

import contextlib
import sqlite3
from pathlib import Path

from lorastudy.errors import StoreError
from lorastudy.protocol.files import replacing, sync_file, sync_folder


def back_up(file: Path, *, kind: str) -> Path:
    """Copy the store to `<file>.<kind>.backup` beside it, or with a number where that is taken; return where.

    Raises:
        StoreError: the copy cannot be written, or the store is damaged so that a copy of it would be, too.
    """
    target = free_name(file, kind=kind)
    copy(file, target)
    return target


def free_name(file: Path, *, kind: str) -> Path:
    """`<file>.<kind>.backup` beside the file, or with a number where that is taken."""
    name, number = file.with_name(f"{file.name}.{kind}.backup"), 1
    while name.exists():
        number += 1
        name = file.with_name(f"{file.name}.{kind}.{number}.backup")
    return name


def copy(file: Path, target: Path) -> None:
    """Write a verified copy; nothing stands under the target's name before it is whole and on disk.

    Raises:
        StoreError: as `back_up`.
    """
    try:
        with replacing(target) as fresh:
            with (
                contextlib.closing(_opened(file, mode="ro")) as source,
                contextlib.closing(sqlite3.connect(fresh)) as made,
            ):
                # SQLite's own copy takes what is still in the write-ahead log; copying the file would not
                source.backup(made)
                problems = [row[0] for row in made.execute("PRAGMA integrity_check")]
            if problems != ["ok"]:
                raise StoreError(
                    f"{file} is damaged ({problems[0]}): see `lorastudy doctor`; no backup was made"
                )
            sync_file(fresh)
        sync_folder(target.parent)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{target}: the backup could not be written: {error}") from error


def _opened(file: Path, *, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode={mode}", uri=True)
