"""Rows from a file or from the lab, each with the place it came from.

JSON (a list of objects, or one object with the list under `data`), JSONL, CSV and TSV, Parquet, and plain text
by paragraphs; `lab:<name>` gives a data set that the package generates. What the columns mean is not decided here.
"""

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorastudy.data.json_reading import MAX_LEVELS, is_too_deep, parsed_file, parsed_line
from lorastudy.data.parquet_reading import parquet_values
from lorastudy.errors import DataError
from lorastudy.spec.wording import shown

LAB_PREFIX = "lab:"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row. `where` is `file.jsonl:12` (line, from 1), or `file.json[12]` (position, from 0)."""

    values: Mapping[str, Any]
    where: str


def read_rows(path: str) -> list[Row]:
    """All rows, in file order. A byte order mark and CRLF line ends are accepted.

    Raises:
        DataError: missing, empty, of an unknown kind, not UTF-8, or not what its ending says.
    """
    if path.startswith(LAB_PREFIX):
        return _lab_rows(path)
    file = existing_file(path)
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: cannot read {file.suffix or 'a file without an ending'!r}; known endings: {', '.join(_READERS)}"
        )
    rows = reader(file)
    if not rows:
        raise DataError(f"{path}: holds no rows")
    return rows


def existing_file(path: str) -> Path:
    """The path, when a file lies there.

    Raises:
        DataError: there is none; says how to make it, or which one was probably meant.
    """
    file = Path(path)
    try:
        is_file, is_folder = file.is_file(), file.is_dir()
    except OSError as error:  # a name too long for the system
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror}") from error
    if is_file:
        return file
    if is_folder:
        raise DataError(f"{path}: is a folder; name a file in it")
    siblings = [other.name for other in file.parent.glob("*")] if file.parent.is_dir() else []
    nearest = difflib.get_close_matches(file.name, siblings, n=1)
    meant = f"Did you mean {file.parent / nearest[0]}? " if nearest else ""
    sample = re.search(r"_(\d+)_sample", file.name)
    count = sample[1] if sample else "1000"
    raise DataError(
        f"{path}: no such file. {meant}Alpaca rows are made by "
        f"`lorastudy prepare --dataset alpaca --num-samples {count}`, your own by `lorastudy prepare --dataset FILE`"
    )


def _lab_rows(path: str) -> list[Row]:
    from lorastudy import lab

    rows = lab.rows(path.removeprefix(LAB_PREFIX))
    return [Row(values=values, where=f"{path}[{index}]") for index, values in enumerate(rows)]


def _json_rows(file: Path) -> list[Row]:
    text = _text(file)
    if not text.strip():
        return []
    try:
        content = parsed_file(text, str(file))
    except json.JSONDecodeError:  # several values one after another: JSONL under the wrong name
        return _jsonl_rows(file)
    values = content.get("data", content) if isinstance(content, dict) else content
    if not isinstance(values, list):
        raise DataError(f'{file}: expected a list of objects, or {{"data": [...]}}')
    return _objects((value, f"{file}[{index}]") for index, value in enumerate(values))


def _jsonl_rows(file: Path) -> list[Row]:
    # Not str.splitlines: it also breaks at U+2028 and others, which JSON allows inside a string.
    lines = enumerate(_text(file).split("\n"), start=1)
    return _objects(
        (parsed_line(line, f"{file}:{number}"), f"{file}:{number}") for number, line in lines if line.strip()
    )


def _objects(values: Iterable[tuple[Any, str]]) -> list[Row]:
    rows = []
    for value, where in values:
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object with named columns, found {type(value).__name__}")
        if is_too_deep(value):
            raise DataError(f"{where}: is nested more than {MAX_LEVELS} levels deep")
        rows.append(Row(values=value, where=where))
    return rows


def _csv_rows(file: Path) -> list[Row]:
    text = _text(file)
    header_line = re.split(r"[\r\n]", text, maxsplit=1)[0]
    # spreadsheets in many countries write ";"
    return _separated_rows(file, text, delimiter=max(",;\t", key=header_line.count))


def _tsv_rows(file: Path) -> list[Row]:
    return _separated_rows(file, _text(file), delimiter="\t")


def _separated_rows(file: Path, text: str, *, delimiter: str) -> list[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    # `strict`, else a quote that is never closed swallows the rest of the file in silence.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[Row] = []
    first_line = 1
    try:
        for fields in reader:
            where, first_line = f"{file}:{first_line}", reader.line_num + 1
            if not header:
                header = _header(fields, where)
            elif fields:
                rows.append(Row(values=_named(fields, header, where=where), where=where))
    except csv.Error as error:
        raise DataError(f"{file}:{first_line}: not valid {file.suffix[1:].upper()}: {error}") from error
    return rows


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


def _parquet_rows(file: Path) -> list[Row]:
    return _objects((value, f"{file}[{index}]") for index, value in enumerate(parquet_values(file)))


def _text_rows(file: Path) -> list[Row]:
    """Paragraphs: stretches of lines between blank ones, as `{"text": ...}`."""
    rows: list[Row] = []
    paragraph: list[str] = []
    for number, line in enumerate([*_text(file).split("\n"), ""], start=1):
        if line.strip():
            paragraph.append(line.strip())
        elif paragraph:
            rows.append(Row(values={"text": "\n".join(paragraph)}, where=f"{file}:{number - len(paragraph)}"))
            paragraph = []
    return rows


def _text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{file}:1: is UTF-16 text; save the file as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{file}:{line}: holds a NUL, so it is not a text file, or not in UTF-8")
    return text.replace("\r\n", "\n")


_READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}
