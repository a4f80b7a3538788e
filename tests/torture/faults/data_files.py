"""Data files with mistakes: each is told by file and row, or every value of it is what the study trains on.

A file that loads is read a second time in an obvious way, by other readers where there are some: each row, each
value, and each text that must stand in what is trained.
"""

import csv
import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lorastudy.data.load import load_examples
from lorastudy.data.prompts import Example
from lorastudy.data.sources import Row, read_rows
from lorastudy.errors import DataError
from torture.data_mistakes import DataFile, mistaken
from torture.harness import FaultResult, counted, listed, tried
from torture.harness import Row as TableRow

ROW = TableRow(
    fault="mutated data files (encodings, nulls, types, nesting, 10 MB rows, duplicates, BOM, CRLF)",
    must="0 tracebacks, 0 values lost in silence, every error with file and row",
    short=150,
    default=1000,
    kept=2000,
)

#: What is wrong with a file as a whole, so that there is no row to name.
_OF_THE_WHOLE_FILE = re.compile(
    r": (holds no rows|columns |column |cannot read '|cannot read 'a file|not a readable Parquet file|the column '.*' appears twice|"
    r"expected a list of objects|is nested too deep|holds a number with thousands|the key '.*' appears twice)"
)
MAX_MESSAGE = 3000


def run(*, amount: int, seed: int, folder: Path) -> FaultResult:
    """Load `amount` mistaken files; a violation is anything but a located error or rows that are the file's."""
    draw = random.Random(seed)
    counts: Counter[str] = Counter()
    violations: list[str] = []
    for number, file in enumerate(counted((mistaken(draw) for _ in range(amount)), total=amount)):
        path = folder / f"rows{file.ending}"
        path.write_bytes(file.content)
        what, violation = judge(path, file)
        counts[what] += 1
        if violation:
            (folder / f"violation-{number}{file.ending}").write_bytes(file.content)
            violations.append(f"{violation[:300]} (violation-{number}{file.ending}: {file.content[:200]!r})")
    told = f"{counts['refused']} refused with file and row, {counts['loaded']} loaded whole"
    return FaultResult(
        fault=ROW.fault,
        num_faults=counts.total(),
        num_violations=len(violations),
        detail="; ".join(filter(None, [told, listed(violations)])),
    )


def judge(path: Path, file: DataFile) -> tuple[str, str | None]:
    """`refused` or `loaded`, and what was violated in the end."""
    loaded = tried(lambda: (read_rows(str(path)), load_examples(str(path))[1]))
    if isinstance(loaded, DataError):
        return "refused", _bad_message(str(loaded), path)
    if isinstance(loaded, Exception):
        return "broken", repr(loaded)
    rows, examples = loaded
    found = tried(lambda: difference(rows, examples, file=file))
    return "loaded", f"the second reading failed: {found!r}" if isinstance(found, Exception) else found


def _bad_message(message: str, path: Path) -> str | None:
    if len(message) > MAX_MESSAGE:
        return f"a message of {len(message)} characters: {message[:100]!r}"
    if not message.startswith(str(path)):
        return f"does not name the file: {message[:200]}"
    where = re.compile(re.escape(str(path)) + r"(:\d+|\[\d+\])")
    if not where.search(message) and not _OF_THE_WHOLE_FILE.search(message):
        return f"does not name the row: {message[:200]}"
    return None


def difference(rows: list[Row], examples: list[Example], *, file: DataFile) -> str | None:
    """What the file holds and the rows do not, or a text that is not in what is trained; None where there is nothing."""
    expected = list(_second_reading(file))
    found = [_plain(row.values) for row in rows]
    if repr(expected) != repr(found):
        at = next(
            (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if repr(a) != repr(b)), -1
        )
        return f"{len(expected)} rows in the file, {len(found)} read, row {at} differs"
    if len(examples) != len(rows):
        return f"{len(rows)} rows were read and {len(examples)} rendered"
    for number, example in enumerate(examples):
        text = "".join(segment.text for segment in example.segments)
        lost = next((part for part in _texts(example) if part.strip() not in text), None)
        if lost is not None:
            return f"row {number}: {lost[:80]!r} is not in what is trained"
    return None


def _second_reading(file: DataFile) -> Iterator[Any]:
    ending = file.ending.lower()
    if ending == ".parquet":
        table = pq.read_table(io.BytesIO(file.content))
        columns = [table.column(index).to_pylist() for index in range(table.num_columns)]
        yield from (
            [list(pair) for pair in zip(table.column_names, map(_plain, values), strict=True)]
            for values in zip(*columns, strict=True)
        )
        return
    whole = file.content.decode("utf-8").removeprefix("\ufeff")
    text = whole.replace("\r\n", "\n")
    if ending == ".txt":
        paragraphs = re.split(r"\n(?:[^\S\n]*\n)+", f"\n\n{text}\n\n")
        stripped = (
            "\n".join(line.strip() for line in part.split("\n") if line.strip()) for part in paragraphs
        )
        yield from ([["text", part]] for part in stripped if part)
    elif ending in {".csv", ".tsv"}:
        yield from _separated(whole, ending)  # line breaks inside a cell stay as they are
    else:
        yield from _json(text)


def _separated(text: str, ending: str) -> Iterator[Any]:
    first = text.split("\n", maxsplit=1)[0].split("\r", maxsplit=1)[0]
    delimiter = "\t" if ending == ".tsv" else max(",;\t", key=first.count)
    lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if line]
    header = [name.strip() for name in lines[0]]
    yield from ([list(pair) for pair in zip(header, line, strict=True)] for line in lines[1:])


def _json(text: str) -> Iterator[Any]:
    """Objects as lists of their pairs, so that none hides another."""
    reader = json.JSONDecoder(object_pairs_hook=_Pairs)
    position, values = _start(text, 0), []
    while position < len(text):
        value, position = reader.raw_decode(text, position)
        position = _start(text, position)
        values.append(value)
    if len(values) == 1 and isinstance(values[0], _Pairs):
        values = dict(values[0]).get("data", values)
    elif len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    yield from map(_plain, values)


def _start(text: str, position: int) -> int:
    """Where the next value begins."""
    space = re.compile(r"\s*").match(text, position)
    assert space is not None
    return space.end()


class _Pairs(list[tuple[str, Any]]):
    """An object as its pairs."""


def _plain(value: Any) -> Any:
    """Lists of pairs for objects, for the comparison."""
    if isinstance(value, _Pairs):
        return [[key, _plain(item)] for key, item in value]
    if isinstance(value, dict):
        return [[key, _plain(item)] for key, item in value.items()]
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _texts(example: Example) -> Iterator[str]:
    """What a row says, as far as its last answer."""
    fmt, row = example.format, example.row
    if fmt.name in {"messages", "sharegpt"}:
        conversation = fmt.conversation(row)
        yield from (turn.plain for turn in conversation.turns[: conversation.answers[-1] + 1])
    else:
        yield from _strings(list(fmt.values(row).values()))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
