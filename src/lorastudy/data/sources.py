"""Rows of files or of the lab, one after another, each with its place.

Readable are JSON (a list of objects, or one object with the list under `data`), JSONL, CSV and TSV, Parquet, and plain
text by paragraphs, each also as `.gz` except Parquet. A pattern such as `data/*.jsonl` names several files, and
`lab:<name>` a data set that the package generates. Files are read from the front in pieces, so memory grows with the
size of a row and not of the file. `formats` decides what the columns mean.
"""

import codecs
import csv
import difflib
import glob
import gzip
import hashlib
import io
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from lorastudy.data.values import MAX_LEVELS, is_too_deep, list_values, parsed_line
from lorastudy.errors import DataError
from lorastudy.suite.wording import shown

LAB_PREFIX = "lab:"

_GZIP = ".gz"

#: The slowest kernel clock ticks a hundred times a second.
_TICK_NANOSECONDS = 20_000_000

_SECONDS_BETWEEN_REPORTS = 0.2

_PIECE_BYTES = 2**20

ROWS_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row. `where` is `file.jsonl:12` (line, from 1), or `file.json[12]` (position, from 0)."""

    values: Mapping[str, Any]
    where: str


@dataclass(frozen=True, kw_only=True)
class ReadingProgress:
    """How far a pass over a data set has come. Bytes are counted on disk, for compressed files too."""

    name: str
    num_rows: int
    bytes_read: int
    bytes_total: int
    seconds: float


Watcher = Callable[[ReadingProgress | None], None]
"""Called a few times a second during a pass, and with None at its end."""

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Within the block, every pass over a data set reports its progress to the watcher."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


class RowSource:
    """The rows of a data set. Each pass reads them anew.

    Raises, when made or while it is read:
        DataError: the data set is missing, of an unknown kind, not UTF-8, not what its ending says, or without rows.
    """

    def __init__(self, *names: str, titles: Mapping[str, str | None] | None = None) -> None:
        """`names` are files, patterns or sets of the lab, read in this order.

        A title replaces a file's name in messages.
        """
        titles = titles or {}
        first = titles.get(names[0]) or names[0]
        self.name = first if len(names) == 1 else f"{first} and {len(names) - 1} more"
        self._parts = [part for name in names for part in _parts(name, title=titles.get(name))]

    def __iter__(self) -> Iterator[Row]:
        """All rows, in the order of the files and of their lines."""
        return self._read(None)

    def picked(self, numbers: Sequence[int]) -> Iterator[Row]:
        """The rows with these numbers (from 0, rising).

        Of JSONL no other row is parsed. Nothing after the last number is read.
        """
        return self._read(numbers)

    def _read(self, numbers: Sequence[int] | None) -> Iterator[Row]:
        wanted = None if numbers is None else iter(numbers)
        next_wanted = None if wanted is None else next(wanted, -1)
        number = 0
        with _reporting(self.name, self._parts) as report:
            for part in self._parts:
                if next_wanted == -1:
                    return
                for raw, where in part.raw_rows(report):
                    if next_wanted is None:
                        yield part.finished(raw, where)
                    elif number == next_wanted:
                        assert wanted is not None
                        yield part.finished(raw, where)
                        next_wanted = next(wanted, -1)
                        if next_wanted == -1:
                            return
                    number += 1
                    report.rows(number)
        if number == 0:
            raise DataError(f"{self.name}: holds no rows")


def read_rows(path: str) -> list[Row]:
    """All rows of a small data set, in file order. A byte order mark and CRLF line ends are accepted.

    Raises:
        DataError: as `RowSource` does.
    """
    return list(RowSource(path))


def is_lab_set(name: str) -> bool:
    """Whether the name is a data set that the package generates."""
    return name.startswith(LAB_PREFIX)


def is_pattern(name: str) -> bool:
    """Whether the name is a pattern, such as `data/*.jsonl`, and not itself the name of a file."""
    return glob.has_magic(name) and not Path(name).exists()


def files_of(name: str) -> list[Path]:
    """The files of a name or a pattern; a pattern's files are sorted by name.

    Raises:
        DataError: there are none; it says how to make one, or which one was probably meant.
    """
    if not is_pattern(name):
        return [existing_file(name)]
    root = Path(Path(name).anchor)
    found = sorted(file for file in root.glob(str(Path(name).relative_to(root))) if file.is_file())
    if not found:
        raise DataError(f"{name}: no file matches this pattern; check the folder, or name one file")
    return found


def existing_file(path: str) -> Path:
    """The path, if a file is there.

    Raises:
        DataError: there is none; it says how to make it, or which one was probably meant.
    """
    file = Path(path)
    try:
        is_file, is_folder = file.is_file(), file.is_dir()
    except OSError as error:  # a name too long for the system
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror}") from error
    if is_file:
        return file
    if is_folder:
        raise DataError(
            f"{path}: is a folder; name a file in it, or several by a pattern such as {path}/*.jsonl"
        )
    siblings = [other.name for other in file.parent.glob("*")] if file.parent.is_dir() else []
    nearest = difflib.get_close_matches(file.name, siblings, n=1)
    meant = f"Did you mean {file.parent / nearest[0]}? " if nearest else ""
    sample = re.search(r"_(\d+)_sample", file.name)
    count = sample[1] if sample else "1000"
    raise DataError(
        f"{path}: no such file. {meant}Alpaca rows are made by "
        f"`lorastudy prepare --dataset alpaca --num-samples {count}`, your own by `lorastudy prepare --dataset FILE`"
    )


def dataset_fingerprint(path: str) -> str:
    """SHA-256 (hex) of the file's bytes, after unpacking; for `lab:<name>`, the fingerprint of its recipe.

    For several files it is the SHA-256 of their fingerprints, in reading order.

    Raises:
        DataError: a file is missing, damaged, or not readable.
    """
    if path.startswith(LAB_PREFIX):
        from lorastudy import lab

        return lab.fingerprint(path.removeprefix(LAB_PREFIX))
    found = [_file_fingerprint(file) for file in files_of(path)]
    return found[0] if len(found) == 1 else hashlib.sha256("\n".join(found).encode()).hexdigest()


def _file_fingerprint(file: Path) -> str:
    try:
        if file.suffix.lower() != _GZIP:
            return bytes_digest(file)
        with gzip.open(file, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except EOFError as error:
        raise DataError(f"{file}: is damaged or no gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def bytes_digest(file: Path) -> str:
    """SHA-256 (hex) of a file's bytes as they lie on disk. A file that has not changed is not read again."""
    return _digest_in_state(file_state(file))


@lru_cache(maxsize=256)
def _digest_in_state(state: tuple[str | int, ...]) -> str:
    """The digest of the file in this state, whose first part is the file's path."""
    with Path(str(state[0])).open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def file_state(file: Path) -> tuple[str | int, ...]:
    """The state of a file, which every write changes: place on disk, size and times.

    A program can reset the modification time of a file, but not its `ctime`.
    """
    state, now = file.stat(), time.time_ns()
    # Within one clock tick, another change may leave the other values equal. The current time makes such a state
    # unique.
    fresh = now if now - state.st_ctime_ns < _TICK_NANOSECONDS else 0
    return (
        str(file),
        state.st_dev,
        state.st_ino,
        state.st_size,
        state.st_mtime_ns,
        state.st_ctime_ns,
        fresh,
    )


_Raw = tuple[Any, str]
"""A row before parsing, or its values, and its place."""


@dataclass(frozen=True, kw_only=True)
class _LabSet:
    """A data set that the package generates."""

    name: str
    size: int = 0

    def raw_rows(self, _report: "_Report") -> Iterator[_Raw]:
        from lorastudy import lab

        rows = lab.rows(self.name.removeprefix(LAB_PREFIX))
        return ((values, f"{self.name}[{index}]") for index, values in enumerate(rows))

    def finished(self, raw: Any, where: str) -> Row:
        return Row(values=raw, where=where)


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file of rows. `kind` is its ending without `.gz`. `title` replaces its name in messages."""

    path: Path
    kind: str
    size: int
    title: str | None

    def raw_rows(self, report: "_Report") -> Iterator[_Raw]:
        try:
            with self.path.open("rb") as file:
                report.file(file)
                is_packed = self.path.suffix.lower() == _GZIP
                content: Any = gzip.GzipFile(fileobj=file) if is_packed else file
                rows = _READERS[self.kind](content, self.path)
                if self.title is not None:
                    rows = ((raw, f"{self.title}[{index}]") for index, (raw, _) in enumerate(rows))
                yield from rows
        except (gzip.BadGzipFile, EOFError) as error:
            raise DataError(f"{self.path}: is damaged or no gzip file: {error}") from error
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}") from error

    def finished(self, raw: Any, where: str) -> Row:
        value = parsed_line(raw, where) if self.kind == ".jsonl" else raw
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object with named columns, found {type(value).__name__}")
        if self.kind in _NESTED and is_too_deep(value):
            raise DataError(f"{where}: is nested more than {MAX_LEVELS} levels deep")
        return Row(values=value, where=where)


def _parts(name: str, *, title: str | None) -> list["_LabSet | _File"]:
    if is_lab_set(name):
        return [_LabSet(name=name)]
    return [_file(path, title) for path in files_of(name)]


def _file(path: Path, title: str | None) -> _File:
    kinds = [suffix.lower() for suffix in path.suffixes[-2:]]
    kind = kinds[-2] if kinds[-1:] == [_GZIP] and len(kinds) > 1 else (kinds or [""])[-1]
    if kind not in _READERS:
        raise DataError(
            f"{path}: cannot read {path.suffix or 'a file without an ending'!r}; known endings: {', '.join(_READERS)}, "
            f"and each of them with {_GZIP}"
        )
    return _File(path=path, kind=kind, size=path.stat().st_size, title=title)


class _Report:
    """Reports to the watcher how far a pass has come."""

    def __init__(self, name: str, parts: Sequence[_LabSet | _File], *, watcher: Watcher | None) -> None:
        self._name, self._watcher = name, watcher
        self._total = sum(part.size for part in parts)
        self._before, self._size = 0, 0
        self._file: IO[bytes] | None = None
        self._began = self._reported = time.monotonic()

    def file(self, file: IO[bytes]) -> None:
        """Start counting another file."""
        self._before += self._size
        self._file, self._size = file, os.fstat(file.fileno()).st_size

    def rows(self, number: int) -> None:
        """Report that `number` rows were read, if it is time to."""
        if self._watcher is None or number % 256 or self._file is None:
            return
        now = time.monotonic()
        if now - self._reported < _SECONDS_BETWEEN_REPORTS:
            return
        self._reported = now
        self._watcher(
            ReadingProgress(
                name=self._name,
                num_rows=number,
                bytes_read=self._before + self._file.tell(),
                bytes_total=self._total,
                seconds=now - self._began,
            )
        )


@contextmanager
def _reporting(name: str, parts: Sequence[_LabSet | _File]) -> Iterator[_Report]:
    watcher = _watcher.get()
    try:
        yield _Report(name, parts, watcher=watcher)
    finally:
        if watcher is not None:
            watcher(None)


def _json_rows(content: IO[bytes], file: Path) -> Iterator[_Raw]:
    """The elements of one list, or of JSONL under the wrong name."""
    return list_values(_text_pieces(content, file), str(file))


def _jsonl_rows(content: IO[bytes], file: Path) -> Iterator[_Raw]:
    # Not str.splitlines: it also breaks at U+2028 and others, which JSON allows inside a string.
    return ((line, f"{file}:{number}") for number, line in _lines(content, file) if line.strip())


def _csv_rows(content: IO[bytes], file: Path) -> Iterator[_Raw]:
    return _separated_rows(content, file, delimiter=None)


def _tsv_rows(content: IO[bytes], file: Path) -> Iterator[_Raw]:
    return _separated_rows(content, file, delimiter="\t")


def _separated_rows(content: IO[bytes], file: Path, *, delimiter: str | None) -> Iterator[_Raw]:
    csv.field_size_limit(sys.maxsize)
    lines = _with_line_ends(content, file)
    first = next(lines, "")
    if delimiter is None:  # spreadsheets in many countries write ";"
        delimiter = max(",;\t", key=first.count)
    header: list[str] = []
    first_line = 1
    # Without `strict`, an unclosed quote silently swallows the rest of the file.
    reader = csv.reader(_chained(first, lines), delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            where, first_line = f"{file}:{first_line}", reader.line_num + 1
            if not header:
                header = _header(fields, where)
            elif fields:
                yield _named(fields, header, where=where), where
    except csv.Error as error:
        kind = next(suffix for suffix in reversed(file.suffixes) if suffix.lower() != _GZIP)
        raise DataError(f"{file}:{first_line}: not valid {kind[1:].upper()}: {error}") from error


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _with_line_ends(content: IO[bytes], file: Path) -> Iterator[str]:
    """Lines with their ends, as `csv` needs them. Old files end lines with a carriage return alone."""
    for _, line in _whole_lines(content, file):
        yield from io.StringIO(line, newline="") if "\r" in line.removesuffix("\r\n") else (line,)


def _header(fields: list[str], where: str) -> list[str]:
    header = [field.strip() for field in fields]
    if len(set(header)) < len(header) or not all(header):
        raise DataError(
            f"{where}: the first line must name every column, each once; found {shown(', '.join(fields))}"
        )
    return header


def _named(fields: list[str], header: list[str], *, where: str) -> dict[str, str]:
    if len(fields) != len(header):
        raise DataError(
            f"{where}: {len(fields)} fields where the first line names {len(header)} columns; "
            'quote a field that holds the delimiter or a line break: "..."'
        )
    return dict(zip(header, fields, strict=True))


def _parquet_rows(_: IO[bytes], file: Path) -> Iterator[_Raw]:
    if file.suffix.lower() == _GZIP:
        raise DataError(f"{file}: Parquet is compressed within; unpack it with gunzip")
    return ((value, f"{file}[{index}]") for index, value in enumerate(parquet_values(file)))


def parquet_values(file: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a Parquet file, each as a dict.

    Raises:
        DataError: the file is not Parquet, is damaged, repeats a column name, or has a row that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            _check_column_names(parquet.schema_arrow.names, file)
            row = 0
            for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE):
                yield from _batch_rows(batch, file=file, first_row=row)
                row += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a readable Parquet file: {_first_line(error)}") from error


def _check_column_names(names: list[str], file: Path) -> None:
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise DataError(f"{file}: the column {shown(twice)} appears twice; keep one")


def _batch_rows(batch: Any, *, file: Path, first_row: int) -> Iterator[Mapping[str, Any]]:
    """The rows of a batch. If they cannot be read together, they are read one by one to find the bad one."""
    try:
        yield from batch.to_pylist()
    except (
        ValueError,
        TypeError,
        OverflowError,
        KeyError,
    ):  # text that is not UTF-8, dates without a year ...
        for index in range(batch.num_rows):
            try:
                yield from batch.slice(index, 1).to_pylist()
            except (ValueError, TypeError, OverflowError, KeyError) as error:
                where = f"{file}[{first_row + index}]"
                raise DataError(f"{where}: cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _text_rows(content: IO[bytes], file: Path) -> Iterator[_Raw]:
    """Paragraphs as `{"text": ...}`. Blank lines separate them."""
    paragraph: list[str] = []
    number = 0
    for number, line in _lines(content, file):
        if line.strip():
            paragraph.append(line.strip())
        elif paragraph:
            yield {"text": "\n".join(paragraph)}, f"{file}:{number - len(paragraph)}"
            paragraph = []
    if paragraph:
        yield {"text": "\n".join(paragraph)}, f"{file}:{number + 1 - len(paragraph)}"


def _lines(content: IO[bytes], file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends, from 1."""
    for number, line in _whole_lines(content, file):
        yield number, line.removesuffix("\n").removesuffix("\r")


def _whole_lines(content: IO[bytes], file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, from 1. Only a line feed ends a line here."""
    for number, line in enumerate(content, start=1):
        if number == 1:
            _refuse_utf16(line, file)
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{file}:{number}: byte 0x{line[error.start]:02x} is not UTF-8; save the file as UTF-8"
            ) from error
        if "\0" in text:
            raise DataError(f"{file}:{number}: holds a NUL, so it is not a text file, or not in UTF-8")
        yield number, text


def _text_pieces(content: IO[bytes], file: Path) -> Iterator[str]:
    """The text in pieces of equal size, because a whole file may be one line."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    start, line = True, 1
    while True:
        piece = content.read(_PIECE_BYTES)
        if start:
            _refuse_utf16(piece, file)
            piece, start = piece.removeprefix(codecs.BOM_UTF8), False
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            bad = error.object
            raise DataError(
                f"{file}:{line + bad.count(10, 0, error.start)}: byte 0x{bad[error.start]:02x} is not UTF-8; "
                "save the file as UTF-8"
            ) from error
        if "\0" in text:
            line += text.count("\n", 0, text.index("\0"))
            raise DataError(f"{file}:{line}: holds a NUL, so it is not a text file, or not in UTF-8")
        line += text.count("\n")
        if text:
            yield text
        if not piece:
            return


def _refuse_utf16(start: bytes, file: Path) -> None:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{file}:1: is UTF-16 text; save the file as UTF-8")


_READERS: dict[str, Callable[[IO[bytes], Path], Iterator[_Raw]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}

_NESTED = (".json", ".jsonl", ".parquet")
