"""The index of a large data set, kept in the user's cache folder, so that only the first of several processes makes it.

The control process, the worker that plans and the worker that trains all need it; a pass over a file takes ten times as
long as hashing it. An index is kept under the hash of what it follows from: the content of the files, how many rows are
taken, and the code that reads them. The file begins with the hash of all that follows, which is checked when it is
read: a damaged, short or foreign file counts for nothing, and the index is made again.
"""

import hashlib
import json
import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorastudy.cache import cache_folder, keep, source_digest
from lorastudy.data.formats import Format
from lorastudy.data.row_index import Index, IndexedRows
from lorastudy.data.sources import files_of, is_lab_set
from lorastudy.errors import DataError
from lorastudy.suite.experiment import DATA_VERSION, canonical_json

#: Smaller files, and fewer rows of larger ones, are indexed anew: a pass over them takes half a second at most.
MIN_BYTES, MIN_ROWS = 4 * 2**20, 10_000
#: An index has `Index.BYTES_PER_ROW` bytes a row. Those that were used last stay.
MAX_KEPT_BYTES = 2**30
_SUFFIX = ".rows"
_DIGEST_BYTES = hashlib.sha256().digest_size
_MAX_HEAD_BYTES = 2**20


def index_key(path: str, *, max_samples: int | None) -> str | None:
    """Under what the index of the first `max_samples` rows is kept; None where it is not worth it.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    if is_lab_set(path) or (max_samples is not None and max_samples < MIN_ROWS):
        return None
    files = files_of(path)
    try:
        if sum(file.stat().st_size for file in files) < MIN_BYTES:
            return None
        contents = [[*_endings(file), _digest(file)] for file in files]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    readers = [version("pyarrow")] if any(".parquet" in content for content in contents) else []
    body = [
        contents,
        max_samples,
        DATA_VERSION,
        source_digest("data/*.py"),
        [sys.version, sys.byteorder, unicodedata.unidata_version, *readers],
    ]
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


def kept_index(key: str) -> IndexedRows | None:
    """What is kept under a key; None where there is nothing that can be trusted."""
    path = _path(key)
    try:
        found = _read(path, key=key)
        if found is not None:
            os.utime(path)  # used last
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def keep_index(key: str, rows: IndexedRows) -> None:
    """Keep it, and make room for it where much is kept already."""
    parts = list(_parts(key, rows))
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    num_bytes = _DIGEST_BYTES + sum(memoryview(part).nbytes for part in parts)
    if num_bytes <= MAX_KEPT_BYTES:
        _make_room(num_bytes)
        keep(_path(key), [digest.digest(), *parts])


def _path(key: str) -> Path:
    return cache_folder("rows") / f"{key[:32]}{_SUFFIX}"


def _endings(file: Path) -> list[str]:
    """They decide how a file is read."""
    return [suffix.lower() for suffix in file.suffixes[-2:]]


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _parts(key: str, rows: IndexedRows) -> Iterator[bytes | memoryview]:
    """What follows the hash: a line of JSON, and the columns of the index."""
    head = {"key": key, "format": asdict(rows.format), "num_rows": len(rows.index)}
    yield f"{json.dumps(head)}\n".encode()
    yield from rows.index.columns()


def _read(path: Path, *, key: str) -> IndexedRows | None:
    with path.open("rb") as file:
        expected, line = file.read(_DIGEST_BYTES), file.readline(_MAX_HEAD_BYTES)
        head = json.loads(line)
        num_column_bytes = os.fstat(file.fileno()).st_size - _DIGEST_BYTES - len(line)
        if head["key"] != key or head["num_rows"] * Index.BYTES_PER_ROW != num_column_bytes:
            return None
        index = Index.blank(head["num_rows"])
        digest = hashlib.sha256(line)
        for column in index.columns():
            file.readinto(column)
            digest.update(column)
    return IndexedRows(format=_format(head["format"]), index=index) if digest.digest() == expected else None


def _format(values: Mapping[str, Any]) -> Format:
    return Format(**{**values, "repeating": tuple(values["repeating"])})


def _make_room(num_bytes: int) -> None:
    """Remove what was not used for the longest time, until so much more fits."""
    with suppress(OSError):
        states = {path: path.stat() for path in cache_folder("rows").glob(f"*{_SUFFIX}")}
        total = num_bytes + sum(state.st_size for state in states.values())
        for path in sorted(states, key=lambda path: states[path].st_mtime_ns):
            if total <= MAX_KEPT_BYTES:
                return
            path.unlink(missing_ok=True)
            total -= states[path].st_size
