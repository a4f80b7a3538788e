"""From the paths in the settings to rendered rows: training, held-out, test, forgetting.

One pass over a file finds its format, checks its rows and keeps two hashes of each (`row_index`). The rows are read again
and rendered on use, so memory grows with the rows in use and not with the file.

Only a row's prompt decides whether it is held out: a hash of the prompt puts the row on a side. Rows with the same prompt are
therefore on the same side, whatever their answers. Adding, removing or reordering rows moves no other row across.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Literal

from lorastudy.data.formats import Format, format_of
from lorastudy.data.prompts import WITHOUT_MODEL, Example, PromptStyle, render
from lorastudy.data.row_index import (
    HASH_BYTES,
    Index,
    IndexedRows,
    RowKeys,
    asked_text,
    index_key,
    indexed_rows,
    keep_index,
    kept_index,
    read_row,
    row_hashes,
)
from lorastudy.data.sources import Row, RowSource, file_state, files_of, is_lab_set
from lorastudy.errors import DataError
from lorastudy.suite.settings import Settings

#: With fewer prompts, a split by prompt would miss the requested share by far, or leave one side empty.
MIN_PROMPTS = 10

SplitBy = Literal["prompt", "row"]


def _numbers() -> "array[int]":
    return array("I")


@dataclass(frozen=True, kw_only=True)
class Split:
    """The row numbers of the three parts, rising. `test` is empty if no test part was requested."""

    by: SplitBy
    train: "array[int]" = field(default_factory=_numbers)
    held_out: "array[int]" = field(default_factory=_numbers)
    test: "array[int]" = field(default_factory=_numbers)


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """A data set after one pass over it. `data_set` gives the same object as long as the files do not change."""

    source: RowSource
    format: Format
    index: Index


@dataclass(frozen=True, kw_only=True)
class RowTexts:
    """A row for a reader: its place, as in `Row.where`, its prompt without any layout, and the rest of its texts."""

    where: str
    prompt: str
    reference: str


@dataclass(frozen=True, kw_only=True)
class DataRows:
    """Some rows of a data set, read and rendered each time they are used."""

    dataset: DataSet
    numbers: Sequence[int]
    """Row numbers in the data set's index, rising."""
    style: PromptStyle = WITHOUT_MODEL

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Example]:
        return self._read(self.numbers)

    def read(self, chosen: Sequence[int] | None = None) -> list[Example]:
        """All of these rows, or those at the chosen positions among them (from 0, rising)."""
        return list(
            self._read(self.numbers if chosen is None else [self.numbers[number] for number in chosen])
        )

    def hashes(self, of: Literal["contents", "prompts"]) -> Iterator[bytes]:
        """The hash of each row's content, or of its prompt."""
        keys = self.dataset.index.keys
        return keys.contents(self.numbers) if of == "contents" else keys.prompts(self.numbers)

    def asked(self, numbers: Sequence[int]) -> Iterator[str]:
        """The prompts, as text, of the rows with these numbers in the data set."""
        fmt = self.dataset.format
        return (asked_text(read_row(row, fmt)) for row in self._rows(numbers))

    def texts(self) -> Iterator[RowTexts]:
        """Each row for a reader. They need no model."""
        for row in self._rows(self.numbers):
            read = read_row(row, self.dataset.format)
            reference = "\n".join(read.texts[read.num_prompt_texts :])
            yield RowTexts(where=row.where, prompt="\n".join(filter(None, read.prompt)), reference=reference)

    def _read(self, numbers: Sequence[int]) -> Iterator[Example]:
        keys, fmt = self.dataset.index.keys, self.dataset.format
        for number, row in zip(numbers, self._rows(numbers), strict=True):
            example = to_example(row, fmt, style=self.style)
            if example.content_hash != keys.content(number).hex():
                raise DataError(
                    f"{row.where}: this row has changed since it was first read; leave the file as it is while a study uses it, and run again"
                )
            yield example

    def _rows(self, numbers: Sequence[int]) -> Iterator[Row]:
        places = self.dataset.index.places
        return self.dataset.source.picked([places[number] for number in numbers])


@dataclass(frozen=True, kw_only=True)
class StudyData:
    """All rows of one pack. `test` and `forgetting` are None if the settings name no such set.

    Counts by split are for `eval`, and for `test` if there is one. `num_leaked` counts held-out rows whose content is
    also trained on: their scores say nothing about new rows. For `test` it counts rows whose content is in the training
    rows or in the held-out rows, because held-out rows select. `num_known_prompts` counts rows whose prompt occurs
    there, whatever their answer. `split_by` says what the split went by; None for a split with its own file.
    `num_empty_prompts` counts training rows that ask nothing.
    """

    train: DataRows
    held_out: DataRows
    test: DataRows | None
    forgetting: DataRows | None
    num_duplicates: int
    num_leaked: Mapping[str, int]
    num_known_prompts: Mapping[str, int]
    split_by: Mapping[str, SplitBy | None]
    num_empty_prompts: int


def load_examples(
    path: str, *, max_samples: int | None = None, style: PromptStyle = WITHOUT_MODEL
) -> tuple[Format, list[Example]]:
    """The format of the data set, and its first `max_samples` rows, rendered.

    Raises:
        DataError: the file cannot be read, its format is unknown, or a row lacks what the format needs.
    """
    rows = all_rows(path, max_samples=max_samples, style=style)
    return rows.dataset.format, rows.read()


def all_rows(path: str, *, max_samples: int | None = None, style: PromptStyle = WITHOUT_MODEL) -> DataRows:
    """The first `max_samples` rows of a data set.

    Raises:
        DataError: the file cannot be read, its format is unknown, or a row lacks what the format needs.
    """
    dataset = data_set(path, max_samples=max_samples)
    return DataRows(dataset=dataset, numbers=range(len(dataset.index)), style=style)


def data_set(path: str, *, max_samples: int | None = None) -> DataSet:
    """The data set of the first `max_samples` rows. Files that have not changed are not read again.

    Raises:
        DataError: the file cannot be read, its format is unknown, or a row lacks what the format needs.
    """
    return _data_set(path, max_samples, state=_state_of(path))


def _state_of(path: str) -> tuple[tuple[str | int, ...], ...]:
    """The states of the files, which every write changes."""
    if is_lab_set(path):
        return ()
    return tuple(file_state(file) for file in files_of(path))


@lru_cache(maxsize=16)
def _data_set(path: str, max_samples: int | None, *, state: object) -> DataSet:
    """The data set. `state` only serves as a part of the cache's key."""
    source = RowSource(path)
    key = index_key(path, max_samples=max_samples)
    found = None if key is None else kept_index(key)
    if found is None:
        found = _indexed(source, path, max_samples=max_samples)
        if key is not None and _state_of(path) == state:  # else the key may not match the index
            keep_index(key, found)
    return DataSet(source=source, format=found.format, index=found.index)


def _indexed(source: RowSource, path: str, *, max_samples: int | None) -> IndexedRows:
    try:
        return indexed_rows(_Guarded(source, max_samples), format_of=format_of)
    except _SourceError as failed:
        raise failed.error from failed.error.__cause__
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


class _SourceError(Exception):
    """A row cannot be read. The error already names the file."""

    def __init__(self, error: DataError) -> None:
        super().__init__()
        self.error = error


class _Guarded:
    """The first rows of a source. It raises `_SourceError` if reading fails.

    A row that breaks the format raises a plain `DataError`, so the two are told apart.
    """

    def __init__(self, source: RowSource, max_samples: int | None) -> None:
        self._source, self._max_samples = source, max_samples

    def __iter__(self) -> Iterator[Row]:
        try:
            yield from islice(self._source, self._max_samples)
        except DataError as error:
            raise _SourceError(error) from error


def to_example(row: Row, fmt: Format, *, style: PromptStyle = WITHOUT_MODEL) -> Example:
    """The row, rendered and hashed. It must already be checked against the format."""
    content, prompt = row_hashes(read_row(row, fmt))
    return Example(
        row=row,
        format=fmt,
        rendering=render(row, fmt, style=style),
        content_hash=content.hex(),
        prompt_hash=prompt.hex(),
    )


def train_and_eval(settings: Settings, *, style: PromptStyle = WITHOUT_MODEL) -> StudyData:
    """The training, held-out, test and forgetting rows that the settings name.

    `max_train_samples` limits the rows of the training file, before parts of it are held out. `max_eval_samples` limits
    the held-out rows, the test rows and the forgetting rows, each separately, whatever file they come from.

    Raises:
        DataError: a file cannot be used, or holding out left one part without rows.
    """
    whole = data_set(settings.dataset_path, max_samples=settings.max_train_samples)
    held_out_set, split = _held_out(whole, settings)
    limit = settings.max_eval_samples

    def rows(dataset: DataSet, numbers: Sequence[int]) -> DataRows:
        return DataRows(dataset=dataset, numbers=numbers, style=style)

    train, held_out = rows(whole, split.train), rows(held_out_set, split.held_out[:limit])
    test = rows(held_out_set, split.test[:limit]) if split.test else None
    if settings.test_dataset_path is not None:
        test = all_rows(settings.test_dataset_path, max_samples=limit, style=style)
    forgetting = None
    if settings.forgetting_dataset_path is not None:
        forgetting = all_rows(settings.forgetting_dataset_path, max_samples=limit, style=style)
    scored = {"eval": (held_out, [train])} | ({} if test is None else {"test": (test, [train, held_out])})
    return StudyData(
        train=train,
        held_out=held_out,
        test=test,
        forgetting=forgetting,
        num_duplicates=num_duplicates(whole.index.keys, split.train),
        num_leaked={name: _num_known(part, among, of="contents") for name, (part, among) in scored.items()},
        num_known_prompts={
            name: _num_known(part, among, of="prompts") for name, (part, among) in scored.items()
        },
        split_by={
            "eval": None if settings.eval_dataset_path else split.by,
            "test": None if settings.test_dataset_path or test is None else split.by,
        },
        num_empty_prompts=sum(whole.index.asks_nothing[number] for number in split.train),
    )


def _num_known(part: DataRows, among: Sequence[DataRows], *, of: Literal["contents", "prompts"]) -> int:
    """The number of rows of a part whose content, or whose prompt, also occurs in `among`."""
    known = hashes_among(part.hashes(of), among, of=of)
    return sum(key in known for key in part.hashes(of))


def hashes_among(
    hashes: Iterable[bytes], among: Sequence[DataRows], *, of: Literal["contents", "prompts"]
) -> set[bytes]:
    """The hashes that also occur in `among`. Its hashes may be far more, so they are not held in memory."""
    wanted = set(hashes)
    return {key for rows in among for key in rows.hashes(of) if key in wanted}


def _held_out(whole: DataSet, settings: Settings) -> tuple[DataSet, Split]:
    """The data set of the held-out and test rows, and the split.

    The split's training numbers belong to `whole`, the others to the returned data set.
    """
    own, share = settings.eval_dataset_path, settings.test_fraction or 0.0
    if own is None:
        dataset = whole
        split = split_rows(whole.index.keys, eval_fraction=settings.eval_fraction, test_fraction=share)
    else:
        dataset = data_set(own, max_samples=settings.max_eval_samples if not share else None)
        # Salted: in a file that the unsalted hash cut off, all rows would be on one side.
        parts = split_rows(dataset.index.keys, eval_fraction=share, salt="test")
        everything = array("I", range(len(whole.index)))
        split = Split(by=parts.by, train=everything, held_out=parts.train, test=parts.held_out)
    if not split.train or not split.held_out or (share and not split.test):
        raise DataError(_one_sided(settings, len(whole.index)))
    return dataset, split


def _one_sided(settings: Settings, num_rows: int) -> str:
    if settings.eval_dataset_path is not None:
        return (
            f"{settings.eval_dataset_path}: taking {settings.test_fraction:g} of its rows as test rows left one side "
            "empty; give more rows, another test_fraction, or test rows of their own (test_dataset_path)"
        )
    shares = [f"{settings.eval_fraction:g}"] + [f"{share:g}" for share in [settings.test_fraction] if share]
    ways_out = ["another eval_fraction", "held-out rows of their own (eval_dataset_path)"]
    return (
        f"{settings.dataset_path}: holding out {' and '.join(shares)} of {num_rows} rows left one side empty; "
        f"give more rows, {', or '.join(ways_out)}"
    )


def split_rows(
    keys: RowKeys,
    numbers: Sequence[int] | None = None,
    *,
    eval_fraction: float,
    test_fraction: float = 0.0,
    salt: str = "",
) -> Split:
    """The split of all rows, or of the rows with these numbers, by their salted prompt hash.

    The hash gives a number in [0, 1). Rows below `eval_fraction` are held out, and rows in the next `test_fraction` are
    test rows. A test part therefore takes rows from training and leaves the held-out rows unchanged. The shares hold
    only in expectation: n prompts give n * fraction held-out ones, give or take sqrt(n * fraction * (1 - fraction)),
    and prompts differ in their number of rows. With fewer than `MIN_PROMPTS` prompts, a row's whole content replaces
    its prompt.
    """
    numbers = range(len(keys)) if numbers is None else numbers
    is_by_row = not _has_distinct(keys.prompts(numbers), min(MIN_PROMPTS, len(numbers)))
    split = Split(by="row" if is_by_row else "prompt")
    key_of = keys.content if is_by_row else keys.prompt
    for number in numbers:
        place = position(key_of(number).hex(), purpose=f"split:{salt}")
        if place < eval_fraction:
            split.held_out.append(number)
        elif place < eval_fraction + test_fraction:
            split.test.append(number)
        else:
            split.train.append(number)
    return split


def position(key: str, *, purpose: str) -> float:
    """A number in [0, 1) from the hash of a row. The numbers for two purposes are independent.

    A sample of the rows with the lowest hashes, split by the same hashes, would be held out whole.
    """
    digest = hashlib.sha256(f"{purpose}\n{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def num_duplicates(keys: RowKeys, numbers: Sequence[int] | None = None) -> int:
    """The number of rows, of all or of these, that repeat the content of an earlier one."""
    num_rows = len(keys if numbers is None else numbers)
    return num_rows - _num_distinct(keys.contents(numbers))


def _has_distinct(hashes: Iterable[bytes], number: int) -> bool:
    """Whether at least `number` of the hashes differ."""
    found: set[bytes] = set()
    for key in hashes:
        if len(found) >= number:
            break
        found.add(key)
    return len(found) >= number


def _num_distinct(hashes: Iterable[bytes]) -> int:
    """The number of different hashes.

    Sixteen parts are counted one by one, because a set takes six times the bytes of its hashes.
    """
    parts = [bytearray() for _ in range(16)]
    for key in hashes:
        parts[key[0] % 16] += key
    return sum(
        len({bytes(part[at : at + HASH_BYTES]) for at in range(0, len(part), HASH_BYTES)}) for part in parts
    )
