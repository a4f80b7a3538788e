"""An index of a data set from one pass over its rows: the pass checks each row and keeps two hashes of it.

The index holds four things for each usable row: its place, the hash of its content, the hash of its prompt, and whether
it asks anything. The index alone decides on which side of a split a row is, so the rows themselves need not stay in
memory.

The index of a large data set is cached in the user's cache folder. The control process, the worker that plans and the
worker that trains all need it, and a pass over a file takes ten times as long as hashing the file. The cache key is a
hash of the content of the files, the number of rows taken, and the code that reads them. A cached file begins with a
hash of the rest, which is checked on reading. A damaged, short or foreign file is ignored, and the index is made again.
"""

import hashlib
import json
import os
import sys
import unicodedata
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

from lorastudy.data.conversations import (
    EMPTY_ANSWER,
    ConversationError,
    Turn,
)
from lorastudy.data.formats import Columns, Format
from lorastudy.data.sources import Row, bytes_digest, files_of, is_lab_set
from lorastudy.errors import DataError
from lorastudy.places import cache_folder, keep, source_digest
from lorastudy.suite.experiment import DATA_VERSION, canonical_json
from lorastudy.suite.wording import shown

HASH_BYTES = 16

#: The format is guessed from this many rows. An odd row further down is rare.
_NUM_FIRST_ROWS = 200

#: A message lists at most this many unusable rows.
_NUM_SHOWN = 5


class RowKeys:
    """Two hashes for each row, 32 bytes in all: enough for splits and for counts of copies."""

    BYTES_PER_ROW = 2 * HASH_BYTES

    def __init__(self) -> None:
        self._contents = bytearray()
        self._prompts = bytearray()

    @classmethod
    def blank(cls, num_rows: int) -> Self:
        """Keys of `num_rows` rows, all zero. Fill them through `columns`."""
        keys = cls()
        keys._contents, keys._prompts = bytearray(num_rows * HASH_BYTES), bytearray(num_rows * HASH_BYTES)
        return keys

    def columns(self) -> tuple[memoryview, memoryview]:
        """The content hashes and the prompt hashes as two writable buffers."""
        return memoryview(self._contents), memoryview(self._prompts)

    def add(self, *, content: bytes, prompt: bytes) -> None:
        """Append a row's `row_hashes`."""
        self._contents += content
        self._prompts += prompt

    def __len__(self) -> int:
        return len(self._contents) // HASH_BYTES

    def content(self, number: int) -> bytes:
        """The hash of a row's content."""
        return bytes(self._contents[number * HASH_BYTES : (number + 1) * HASH_BYTES])

    def prompt(self, number: int) -> bytes:
        """The hash of a row's prompt."""
        return bytes(self._prompts[number * HASH_BYTES : (number + 1) * HASH_BYTES])

    def contents(self, numbers: Sequence[int] | None = None) -> Iterator[bytes]:
        """The content hashes of all rows, or of the rows with these numbers."""
        return map(self.content, range(len(self)) if numbers is None else numbers)

    def prompts(self, numbers: Sequence[int] | None = None) -> Iterator[bytes]:
        """The prompt hashes of all rows, or of the rows with these numbers."""
        return map(self.prompt, range(len(self)) if numbers is None else numbers)


@dataclass(frozen=True, kw_only=True)
class Index:
    """What one pass keeps of the usable rows, in their order."""

    keys: RowKeys = field(default_factory=RowKeys)
    places: "array[int]" = field(default_factory=lambda: array("I"))
    """The place of each row among all rows read."""
    asks_nothing: bytearray = field(default_factory=bytearray)
    """1 for a row that asks nothing: its answer is trained without a question."""

    left_out: "array[int]" = field(default_factory=lambda: array("I"))
    """Places of the rows left out because their answer is empty. Used where such rows are allowed, as in `prepare`."""

    BYTES_PER_ROW: ClassVar[int] = RowKeys.BYTES_PER_ROW + array("I").itemsize + 1

    def __len__(self) -> int:
        return len(self.places)

    @classmethod
    def blank(cls, num_rows: int) -> Self:
        """An index of `num_rows` rows, all zero. Fill it through `columns`."""
        places = array("I", bytes(num_rows * array("I").itemsize))
        return cls(keys=RowKeys.blank(num_rows), places=places, asks_nothing=bytearray(num_rows))

    def columns(self) -> tuple[memoryview, ...]:
        """All columns of the index as writable buffers of bytes."""
        return (*self.keys.columns(), memoryview(self.places).cast("B"), memoryview(self.asks_nothing))


@dataclass(frozen=True, kw_only=True)
class IndexedRows:
    """The format of some rows, and their index."""

    format: Format
    index: Index


def indexed_rows(
    rows: Iterable[Row], *, format_of: Callable[[Columns], Format], leaves_out_empty_answers: bool = False
) -> IndexedRows:
    """The format of the rows, decided by their columns, and the index made with that format (`index_rows`).

    The columns of all rows decide the format. The first rows nearly always give the same one, so the index is made with
    their format while the columns are gathered. If all rows together give another format, the index is made again.
    `rows` are therefore read more than once.

    Raises:
        DataError: a row cannot be read; else, the columns fit no format; else, a row lacks what the format needs.
    """
    expected = _format_or_none(islice(rows, _NUM_FIRST_ROWS), format_of)
    gathering = _Gathering(rows)
    index, problem = Index(), None
    if expected is None:
        gathering.go_on()
    else:
        try:
            index = index_rows(gathering, expected, leaves_out_empty_answers=leaves_out_empty_answers)
        except DataError as error:
            if not gathering.is_through:
                raise
            problem = error
    fmt = format_of(gathering.columns)
    if expected is None or not fmt.reads_as(expected):
        index = index_rows(rows, fmt, leaves_out_empty_answers=leaves_out_empty_answers)
    elif problem is not None:
        raise problem
    return IndexedRows(format=fmt, index=index)


def _format_or_none(rows: Iterable[Row], format_of: Callable[[Columns], Format]) -> Format | None:
    try:
        return format_of(Columns(rows))
    except DataError:
        return None


class _Gathering:
    """Passes rows on and gathers their columns."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = rows
        self.columns = Columns()
        self.is_through = False

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            self.columns.add(row.values)
            yield row
        self.is_through = True

    def go_on(self) -> None:
        """Read all rows, only to gather their columns."""
        for _ in self:
            pass


def index_rows(rows: Iterable[Row], fmt: Format, *, leaves_out_empty_answers: bool = False) -> Index:
    """The index of the trained rows. Each row is checked against the format.

    Raises:
        DataError: a row lacks what the format needs, or cannot be read.
    """
    index = Index()
    numbered = _Numbered(rows)
    tolerated = (EMPTY_ANSWER,) if leaves_out_empty_answers else ()
    for read in checked(trained_rows(numbered, fmt), fmt, tolerated=tolerated):
        if read.problem is not None:
            index.left_out.append(numbered.place)
            continue
        content, prompt = row_hashes(read)
        index.keys.add(content=content, prompt=prompt)
        index.places.append(numbered.place)
        index.asks_nothing.append(read.asks_nothing)
    return index


class _Numbered:
    """Passes rows on and holds the place of the last one."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = rows
        self.place = -1

    def __iter__(self) -> Iterator[Row]:
        for place, row in enumerate(self._rows):
            self.place = place
            yield row


def trained_rows(rows: Iterable[Row], fmt: Format) -> Iterator[Row]:
    """The rows that no column turns off.

    Raises:
        DataError: after the last row, if every row was turned off.
    """
    has_rows = has_trained = False
    for row in rows:
        has_rows = True
        if fmt.is_trained(row):
            has_trained = True
            yield row
    if has_rows and not has_trained:
        columns = ", ".join(map(shown, fmt.row_switches))
        raise DataError(f"{columns} turned every row off; nothing is left to train")


def check(rows: Iterable[Row], fmt: Format) -> None:
    """Check that every row has what the format needs.

    Raises:
        DataError: some rows do not; it lists the first of them and their number.
    """
    for _ in checked(rows, fmt):
        pass


def checked(rows: Iterable[Row], fmt: Format, *, tolerated: Collection[str] = ()) -> Iterator["ReadRow"]:
    """The rows without a problem or with a tolerated one. After the last row, raises the error of `check`."""
    num_rows = num_bad = 0
    bad: list[str] = []
    for row in rows:
        num_rows += 1
        read = read_row(row, fmt)
        if read.problem is None or read.problem in tolerated:
            yield read
            continue
        num_bad += 1
        if len(bad) < _NUM_SHOWN:
            bad.append(f"{row.where}: {read.problem}")
    if bad:
        more = f"\n... and {num_bad - _NUM_SHOWN} more" if num_bad > _NUM_SHOWN else ""
        listing = "\n".join(bad)
        raise DataError(f"{num_bad} of {num_rows} rows are not usable as {fmt.name}:\n{listing}{more}")


@dataclass(frozen=True, kw_only=True)
class ReadRow:
    """The texts of a row, split once. A row with a problem has no texts."""

    problem: str | None = None
    """Why the row cannot be used."""
    texts: tuple[str, ...] = ()
    """All texts of the row, turn by turn."""
    num_prompt_texts: int = 0
    """The number of texts before the first trained answer; 0 for a plain text."""
    asks_nothing: bool = False
    """Whether the prompt texts other than the system prompt are blank. False for a plain text, which has no answer."""

    @property
    def prompt(self) -> tuple[str, ...]:
        """The texts before the first trained answer."""
        return self.texts[: self.num_prompt_texts]


def read_row(row: Row, fmt: Format) -> ReadRow:
    """The texts of the row, or the problem that makes it unusable."""
    try:
        values = fmt.values(row)
        if fmt.name in ("messages", "sharegpt"):
            return _read_conversation(values, fmt)
        answer = values[fmt.answer_part]
        if not answer.strip():
            return ReadRow(problem=EMPTY_ANSWER)
        if fmt.name == "text":
            return ReadRow(problem=_broken_text([answer]), texts=(answer,))
        return _read_instruction(values, fmt)
    except ConversationError as error:
        return ReadRow(problem=str(error))


def _read_conversation(values: Mapping[str, Any], fmt: Format) -> ReadRow:
    conversation = fmt.conversation_of(values)
    turns, first = conversation.turns, conversation.answers[0]
    return ReadRow(
        problem=_broken_row(values, turns),
        texts=tuple(turn.plain for turn in turns),
        num_prompt_texts=first,
        asks_nothing=not any(turn.plain.strip() for turn in turns[:first] if turn.role != "system"),
    )


def _read_instruction(values: Mapping[str, Any], fmt: Format) -> ReadRow:
    """The same as `_read_conversation`, without building the conversation: faster, and most rows have this form."""
    instruction = fmt.instruction_of(values)
    system = (instruction.system,) if instruction.system.strip() else ()
    earlier, question = instruction.history, instruction.question
    asks = bool(question.strip()) or any(turn.plain.strip() for turn in earlier if turn.role != "system")
    texts = (*system, *(turn.plain for turn in earlier), question, instruction.answer)
    return ReadRow(
        problem=_broken_row(values, earlier),
        texts=texts,
        num_prompt_texts=len(texts) - 1,
        asks_nothing=not asks,
    )


def _broken_row(values: Mapping[str, Any], turns: Sequence[Turn]) -> str | None:
    # A call's arguments may be JSON within JSON, so their text appears only in the turn.
    return _broken_text([*_strings(values), *(turn.plain for turn in turns if turn.calls)])


def _strings(values: Any) -> list[str]:
    """All strings in nested lists and objects."""
    found: list[str] = []
    for item in values.values() if isinstance(values, dict) else values:
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, dict | list | tuple):
            found += _strings(item)
    return found


def _broken_text(texts: Sequence[str]) -> str | None:
    """The problem of texts that no tokenizer and no file accepts; None for sound ones.

    JSON can spell half of a surrogate pair, which is not a character.
    """
    text = "".join(texts)
    try:
        if not text.isascii():
            text.encode("utf-8")
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is not text"
    return "holds a NUL character, which is not text" if "\0" in text else None


def row_hashes(read: ReadRow) -> tuple[bytes, bytes]:
    """The hash of a row's content and the hash of its prompt: the first 16 bytes of SHA-256 over its texts in order.

    Case, white space, Unicode form, column names and empty texts are ignored. The same question and answer therefore
    have the same content as an Alpaca row, as a pair, and as a conversation of two turns. The prompt is the text before
    the first answer. For plain text, and for a row that asks nothing, the prompt hash is the content hash.
    """
    texts = [_normalised(text) for text in read.texts]
    content = _digest(texts)
    prompt = texts[: read.num_prompt_texts]
    return content, _digest(prompt) if any(prompt) else content


def asked_text(read: ReadRow) -> str:
    """The text behind the prompt hash, not normalised."""
    return "\n".join(read.prompt if any(map(_normalised, read.prompt)) else read.texts)


def _digest(texts: Sequence[str]) -> bytes:
    joined = "\x1f".join(text for text in texts if text)
    return hashlib.sha256(joined.encode()).digest()[:HASH_BYTES]


def _normalised(text: str) -> str:
    if text.isascii():  # ASCII has one Unicode form, and `lower` equals `casefold`
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


#: Smaller files, and fewer rows of larger files, are not cached: a pass over them takes half a second at most.
MIN_BYTES, MIN_ROWS = 4 * 2**20, 10_000

#: Limit of the cache, at `Index.BYTES_PER_ROW` bytes a row. The least recently used indexes are removed first.
MAX_KEPT_BYTES = 2**30

_SUFFIX = ".rows"

_DIGEST_BYTES = hashlib.sha256().digest_size

_MAX_HEAD_BYTES = 2**20


def index_key(path: str, *, max_samples: int | None) -> str | None:
    """The cache key of the index of the first `max_samples` rows; None for files too small to cache.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    if is_lab_set(path) or (max_samples is not None and max_samples < MIN_ROWS):
        return None
    files = files_of(path)
    try:
        if sum(file.stat().st_size for file in files) < MIN_BYTES:
            return None
        contents = [[*_endings(file), bytes_digest(file)] for file in files]
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
    """The cached index under a key; None if there is none or it is damaged."""
    path = _kept_path(key)
    try:
        found = _read_kept(path, key=key)
        if found is not None:
            os.utime(path)  # marks it as recently used
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def keep_index(key: str, rows: IndexedRows) -> None:
    """Cache the index; remove older ones if the cache is full."""
    parts = list(_kept_parts(key, rows))
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    num_bytes = _DIGEST_BYTES + sum(memoryview(part).nbytes for part in parts)
    if num_bytes <= MAX_KEPT_BYTES:
        _make_room(num_bytes)
        keep(_kept_path(key), [digest.digest(), *parts])


def _kept_path(key: str) -> Path:
    return cache_folder("rows") / f"{key[:32]}{_SUFFIX}"


def _endings(file: Path) -> list[str]:
    """The endings of a file's name, which decide how it is read."""
    return [suffix.lower() for suffix in file.suffixes[-2:]]


def _kept_parts(key: str, rows: IndexedRows) -> Iterator[bytes | memoryview]:
    """The content of a cached file after its hash: a line of JSON, then the columns of the index."""
    head = {"key": key, "format": asdict(rows.format), "num_rows": len(rows.index)}
    yield f"{json.dumps(head)}\n".encode()
    yield from rows.index.columns()


def _read_kept(path: Path, *, key: str) -> IndexedRows | None:
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
    return (
        IndexedRows(format=_kept_format(head["format"]), index=index) if digest.digest() == expected else None
    )


def _kept_format(values: Mapping[str, Any]) -> Format:
    return Format(**{**values, "repeating": tuple(values["repeating"])})


def _make_room(num_bytes: int) -> None:
    """Remove the least recently used indexes until `num_bytes` more fit."""
    with suppress(OSError):
        states = {path: path.stat() for path in cache_folder("rows").glob(f"*{_SUFFIX}")}
        total = num_bytes + sum(state.st_size for state in states.values())
        for path in sorted(states, key=lambda path: states[path].st_mtime_ns):
            if total <= MAX_KEPT_BYTES:
                return
            path.unlink(missing_ok=True)
            total -= states[path].st_size
