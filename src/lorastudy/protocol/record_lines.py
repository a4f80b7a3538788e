"""Records as lines of a file, one each, checksummed: written by a worker, read by the runner.

Whatever is not a step is on disk when it has been written, so what a reader has seen no power cut takes back.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, get_args

from lorastudy.protocol.records import ArmStep, Outcome, PackEnd, PackStep, Record
from lorastudy.suite.experiment import canonical_json

_TYPES: dict[str, type[Any]] = {cls.__name__: cls for cls in (*get_args(Record), PackEnd)}


def encode(record: Record | PackEnd) -> str:
    """One line: `{"sha256": <16 hex digits of the canonical body>, "type": ..., "body": ...}`."""
    body = dataclasses.asdict(record)
    kind = type(record).__name__
    return json.dumps({"sha256": _checksum(kind, body), "type": kind, "body": body}, allow_nan=False)


def decode(line: str) -> Record | PackEnd:
    """What `encode` wrote.

    Raises:
        ValueError: the line is torn or damaged.
    """
    outer = json.loads(line)
    is_record = isinstance(outer, dict) and outer.keys() == {"sha256", "type", "body"}
    if not is_record or str(outer["type"]) not in _TYPES:
        raise ValueError("not a record")
    kind, body = outer["type"], outer["body"]
    if outer["sha256"] != _checksum(kind, body):
        raise ValueError("checksum does not match")
    record: Record | PackEnd = _TYPES[kind](**_with_tuples(body))
    return record


class RecordWriter:
    """Appends records to a file. Whatever is not a step is on disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, record: Record | PackEnd) -> None:
        """Append one record; steps are flushed, everything else is synced to disk."""
        self._file.write(encode(record) + "\n")
        self._file.flush()
        if not isinstance(record, PackStep):
            os.fsync(self._file.fileno())

    def sync(self) -> int:
        """Wait until all of it is on disk; return how many bytes it has."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()


class RecordReader:
    """Reads the whole lines that have been appended since the last call; a torn last line waits for its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def read_new(self) -> Iterator[Record]:
        """Yield new records.

        Raises:
            ValueError: a whole line is damaged.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield from _flat(decode(line.decode("utf-8")))

    def has_torn_end(self) -> bool:
        """Whether something stands behind the last whole line that was read: of a worker that is writing, or died."""
        return self.path.exists() and self.path.stat().st_size > self._offset


def read_records(path: Path, *, num_bytes: int) -> list[Record]:
    """The records in the first bytes of a file, which end with a line.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is damaged, or the file is shorter.
    """
    with path.open("rb") as file:
        content = file.read(num_bytes)
    if len(content) < num_bytes or not content.endswith(b"\n"):
        raise ValueError(f"{path} has no whole line at byte {num_bytes}")
    return [record for line in content.decode().splitlines() for record in _flat(decode(line))]


def _flat(record: Record | PackEnd) -> tuple[Record, ...]:
    return record.outcomes if isinstance(record, PackEnd) else (record,)


def _checksum(kind: str, body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json([kind, body]).encode()).hexdigest()[:16]


def _with_tuples(body: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in body.items()}
    if "arms" in values:
        values["arms"] = tuple(ArmStep(**arm) for arm in values["arms"])
    if "outcomes" in values:
        values["outcomes"] = tuple(Outcome(**outcome) for outcome in values["outcomes"])
    return values
