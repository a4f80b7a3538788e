"""Prepared data files: sampled, split by prompt, in canonical columns, one JSON object per line.

`fetched` reads any named data set: `alpaca`, a hub id, a file, or a set of the lab.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lorastudy.data.formats import Columns, Format, format_of
from lorastudy.data.load import SplitBy, num_duplicates, position, split_rows, to_example
from lorastudy.data.prompts import Example
from lorastudy.data.row_index import RowKeys, indexed_rows
from lorastudy.data.sources import LAB_PREFIX, Row, RowSource, files_of, is_lab_set, is_pattern
from lorastudy.errors import DataError
from lorastudy.places import DATA_DIR
from lorastudy.suite.base_model import OFFLINE_VARIABLE, is_hub_reachable

ALL = -1

#: Differs from the salt of a suite's split, which otherwise would find nothing to hold out in a training file.
SALT = "prepare"

ALPACA = "alpaca"

_ALPACA_ID = "tatsu-lab/alpaca"

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")

_FILE_ENDING = re.compile(r"\.(jsonl?|csv|tsv|parquet|txt)(\.gz)?$", re.IGNORECASE)

_JSON = json.JSONEncoder(ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to prepare. `train_share` None makes no split; `num_samples` -1 takes all rows.

    With a `validation_share`, the rows outside training are split again: this share for validation, the rest for test.

    Raises:
        DataError: an option is out of range.
    """

    datasets: tuple[str, ...]
    output_dir: Path = DATA_DIR
    num_samples: int = ALL
    train_share: float | None = None
    validation_share: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_samples != ALL and self.num_samples < 1:
            raise DataError(f"--num-samples {self.num_samples}: give a number of rows, or -1 for all")
        if self.train_share is not None and not 0 < self.train_share < 1:
            raise DataError(
                f"--train-test-split {self.train_share:g}: give the share of training rows, between 0 and 1"
            )
        if self.validation_share is None:
            return
        if self.train_share is None:
            raise DataError(
                "--validation-split: goes with --train-test-split, such as 0.8 with a validation split of 0.1"
            )
        if not 0 < self.validation_share < 1 - self.train_share:
            raise DataError(
                f"--validation-split {self.validation_share:g}: give a share between 0 and the "
                f"{1 - self.train_share:g} that are not for training, so that test rows are left"
            )


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file, and its number of rows."""

    path: Path
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The result. Duplicates and empty prompts are counted among the taken rows, and kept."""

    num_rows: int
    num_taken: int
    num_empty_answers: int
    num_empty_prompts: int
    num_duplicates: int
    split_by: SplitBy | None
    """What the split went by; None without a split."""
    format: Format
    example: Example
    """The first taken row."""
    files: tuple[Written, ...]


def prepare(
    rows: Iterable[Row], *, wanted: Wanted, format_of: Callable[[Columns], Format] = format_of
) -> Prepared:
    """Write `<name>.jsonl`, or `<name>_<N>_sample.jsonl`; with a split also `<name>_train` and `<name>_test`.

    With a validation share, also write `<name>_validation`. Rows with an empty answer are left out and counted, because
    published sets have a few. A row's content and the seed decide whether it is sampled, not its position. The rows are
    split by prompt, as a suite splits them: `1 - train_share` is its `eval_fraction`. With three parts, the validation
    share is the `eval_fraction`, and the rest is the `test_fraction`. `rows` are read twice, and never held in memory.
    `format_of` decides the meaning of the columns.

    Raises:
        DataError: unusable rows, a side of the split without rows, or no place to write.
    """
    counted = _Counted(rows)
    indexed = indexed_rows(counted, format_of=format_of, leaves_out_empty_answers=True)
    fmt, index = indexed.format, indexed.index
    if not len(index):
        raise DataError(f"{wanted.datasets[0]}: every row has an empty answer")
    taken = _sample(index.keys, num_samples=wanted.num_samples, seed=wanted.seed)
    parts, split_by = _parts(index.keys, taken, wanted=wanted)
    belongs = bytearray(counted.num_rows)
    for bit, (_, numbers) in enumerate(parts):
        for number in numbers:
            belongs[index.places[number]] |= 1 << bit
    paths = [path for path, _ in parts]
    example = _write(paths, rows, belongs=belongs, fmt=fmt, first=index.places[taken[0]])
    return Prepared(
        num_rows=counted.num_rows,
        num_taken=len(taken),
        num_empty_answers=len(index.left_out),
        num_empty_prompts=sum(index.asks_nothing[number] for number in taken),
        num_duplicates=num_duplicates(index.keys, taken),
        split_by=split_by,
        format=fmt,
        example=example,
        files=tuple(Written(path=path, num_rows=len(part)) for path, part in parts),
    )


class _Counted:
    """Passes rows on, and holds the number of rows in the last pass."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = rows
        self.num_rows = 0

    def __iter__(self) -> Iterator[Row]:
        for number, row in enumerate(self._rows, start=1):
            self.num_rows = number
            yield row


def _sample(keys: RowKeys, *, num_samples: int, seed: int) -> Sequence[int]:
    """The numbers of the rows with the lowest seeded hashes, rising."""
    if num_samples == ALL:
        return range(len(keys))
    places = [position(content.hex(), purpose=f"sample:{seed}") for content in keys.contents()]
    return sorted(sorted(range(len(keys)), key=places.__getitem__)[:num_samples])


_Parts = list[tuple[Path, Sequence[int]]]


def _parts(keys: RowKeys, taken: Sequence[int], *, wanted: Wanted) -> tuple[_Parts, SplitBy | None]:
    """Each file with the numbers of its rows. Nothing is written yet, so an impossible file leaves no other behind."""
    name = dataset_name(wanted.datasets[0])
    whole = name if wanted.num_samples == ALL else f"{name}_{wanted.num_samples}_sample"
    path = wanted.output_dir / f"{whole}.jsonl"
    parts: _Parts = []
    if not _is_source(path, wanted):
        parts.append((path, taken))
    elif wanted.train_share is None:
        raise DataError(f"{path}: is the file that is read; choose another --output-dir")
    if wanted.train_share is None:
        return parts, None
    if wanted.validation_share is None:
        split = split_rows(keys, taken, eval_fraction=1 - wanted.train_share, salt=SALT)
        sides = {"train": split.train, "test": split.held_out}
    else:
        test_share = 1 - wanted.train_share - wanted.validation_share
        split = split_rows(
            keys, taken, eval_fraction=wanted.validation_share, test_fraction=test_share, salt=SALT
        )
        sides = {"train": split.train, "validation": split.held_out, "test": split.test}
    if not all(sides.values()):
        raise DataError(f"a split of {len(taken)} rows by {wanted.train_share:g} left one side empty")
    parts += [(wanted.output_dir / f"{name}_{side}.jsonl", numbers) for side, numbers in sides.items()]
    return parts, split.by


def _is_source(path: Path, wanted: Wanted) -> bool:
    sources = [
        file
        for name in wanted.datasets
        if is_file_name(name) and not is_lab_set(name)
        for file in files_of(name)
    ]
    return path.exists() and any(path.samefile(source) for source in sources)


def _write(
    paths: Sequence[Path], rows: Iterable[Row], *, belongs: bytearray, fmt: Format, first: int
) -> Example:
    """The row numbered `first`. Writes all files or none.

    `belongs` has a bit for each file that a row goes into.
    """
    path = paths[0]
    try:
        with ExitStack() as open_files:
            files = []
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                _partial(path).unlink(missing_ok=True)  # may be a link to a foreign file
                file = _partial(path).open("w", encoding="utf-8", newline="\n")
                files.append(open_files.enter_context(file))
            example = _write_rows(rows, files, belongs=belongs, fmt=fmt, first=first)
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for path in paths:
            _partial(path).replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    return example


def _write_rows(
    rows: Iterable[Row], files: Sequence[IO[str]], *, belongs: bytearray, fmt: Format, first: int
) -> Example:
    example: Example | None = None
    for number, (row, bits) in enumerate(zip(rows, belongs, strict=True)):
        if number == first:
            example = to_example(row, fmt)
        if bits:
            line = f"{_line(row, fmt)}\n"
            for bit, file in enumerate(files):
                if bits >> bit & 1:
                    file.write(line)
    assert example is not None
    return example


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _line(row: Row, fmt: Format) -> str:
    values = fmt.values(row)
    if fmt.name == "alpaca":
        parts = ("instruction", "input", "output")
        values = {part: values.get(part) or "" for part in parts} | {
            part: value for part, value in values.items() if part not in parts
        }
    return _JSON.encode(values)


@contextmanager
def fetched(*datasets: str) -> Iterator[Iterable[Row]]:
    """The rows, which can be read repeatedly within the block. Only a hub id is downloaded.

    Raises:
        DataError: no such file, the hub cannot be reached, or it has no such data set.
    """
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for number, dataset in enumerate(datasets):
            hub_id = hub_dataset(dataset)
            if hub_id is not None:
                path = Path(folder) / f"{number}.jsonl"
                _download(hub_id, path)
            names.append(dataset if hub_id is None else str(path))
        yield RowSource(
            *names, titles={name: hub_dataset(dataset) for name, dataset in zip(names, datasets, strict=True)}
        )


def hub_dataset(dataset: str) -> str | None:
    """The hub id of a data set; None for a file, existing or not, and for a set of the lab."""
    if dataset == ALPACA:
        return _ALPACA_ID
    return None if is_file_name(dataset) or not _HUB_ID.fullmatch(dataset) else dataset


def is_file_name(dataset: str) -> bool:
    """Whether the name is a file (existing or not) or a set of the lab, rather than a data set of the hub."""
    is_named_so = dataset.startswith(LAB_PREFIX) or is_pattern(dataset) or _FILE_ENDING.search(dataset)
    return bool(is_named_so) or Path(dataset).exists()


def dataset_name(dataset: str) -> str:
    """The name of the prepared files.

    It is a file's name without ending, a pattern's text before its wildcards, or the last part of a hub id.
    """
    if is_file_name(dataset) and not dataset.startswith(LAB_PREFIX):
        name = _FILE_ENDING.sub("", Path(dataset).name)
        if not is_pattern(dataset):
            return name
        return re.sub(r"\W*[*?\[].*", "", name) or re.sub(r"\W+", "_", Path(dataset).parent.name) or "rows"
    return re.sub(r"[^\w.-]", "_", dataset.rpartition("/")[2])


def _download(hub_id: str, path: Path) -> None:
    """Download a data set in another process: `datasets` imports much, and this process stays small.

    If the hub cannot be reached, the download works offline: it uses earlier downloads, and fails at once for others.
    """
    offline = {} if is_hub_reachable() else {OFFLINE_VARIABLE: "1"}
    done = subprocess.run(  # noqa: S603 - our own module, an argument list, no shell
        [sys.executable, "-m", "lorastudy.data.hub", hub_id, str(path)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **offline},
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"{hub_id}: the download ended with {done.returncode}"]
        raise DataError(lines[-1])
