"""Data files ready for a study: sampled, split by content, in canonical columns, one JSON object per line."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorastudy.data.examples import Example
from lorastudy.data.fetch import dataset_name
from lorastudy.data.formats import Format, check, trained_rows, without_empty_answers
from lorastudy.data.load import num_empty_prompts, to_examples
from lorastudy.data.sources import Row
from lorastudy.data.splits import num_duplicates, position, split_by_content
from lorastudy.errors import DataError

ALL = -1
#: Another draw than a suite's own, which would find nothing left to hold out in a file that the same draw has cut.
SALT = "prepare"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to make of a data set. `train_share` None makes no split; `num_samples` -1 takes all rows.

    With a `validation_share` the rest of the rows is cut in two: so much for validation, what is left for the test.

    Raises:
        DataError: an option is out of range.
    """

    dataset: str
    output_dir: Path = Path("data")
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
    """A file, and how many rows it holds."""

    path: Path
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What became of the rows. Duplicates and empty prompts are counted among those taken, and kept."""

    num_rows: int
    num_empty_answers: int
    num_empty_prompts: int
    num_duplicates: int
    examples: tuple[Example, ...]
    files: tuple[Written, ...]


def prepare(rows: Sequence[Row], fmt: Format, *, wanted: Wanted) -> Prepared:
    """Write `<name>.jsonl`, or `<name>_<N>_sample.jsonl`; with a split also `<name>_train` and `<name>_test`.

    With a validation share there is a `<name>_validation` too.
    Rows with an empty answer are left out and counted, as published sets have a few. Which rows are sampled
    follows from their content and the seed, not from their order. The split is the one that a suite makes of
    the same rows with `eval_fraction = 1 - train_share`; of three parts, with `eval_fraction` as the validation
    share and `test_fraction` as what is left.

    Raises:
        DataError: unusable rows, a side of the split without rows, or no place to write.
    """
    trained = trained_rows(rows, fmt)
    answered = without_empty_answers(trained, fmt)
    if not answered:
        raise DataError(f"{wanted.dataset}: every row has an empty answer")
    check(answered, fmt)
    examples = _sample(to_examples(answered, fmt), num_samples=wanted.num_samples, seed=wanted.seed)
    parts = _parts(examples, wanted)
    for path, part in parts:
        _write(path, part)
    return Prepared(
        num_rows=len(rows),
        num_empty_answers=len(trained) - len(answered),
        num_empty_prompts=num_empty_prompts(examples),
        num_duplicates=num_duplicates(examples),
        examples=tuple(examples),
        files=tuple(Written(path=path, num_rows=len(part)) for path, part in parts),
    )


def _sample(examples: Sequence[Example], *, num_samples: int, seed: int) -> list[Example]:
    """The rows with the lowest seeded hashes, in their old order."""
    if num_samples == ALL:
        return list(examples)
    places = [position(example.content_hash, purpose=f"sample:{seed}") for example in examples]
    lowest = sorted(range(len(examples)), key=places.__getitem__)[:num_samples]
    return [examples[index] for index in sorted(lowest)]


def _parts(examples: Sequence[Example], wanted: Wanted) -> list[tuple[Path, Sequence[Example]]]:
    """Each file with its rows. Nothing has been written when one of them turns out to be impossible."""
    name = dataset_name(wanted.dataset)
    whole = name if wanted.num_samples == ALL else f"{name}_{wanted.num_samples}_sample"
    path = wanted.output_dir / f"{whole}.jsonl"
    parts: list[tuple[Path, Sequence[Example]]] = []
    if not _is_source(path, wanted):
        parts.append((path, examples))
    elif wanted.train_share is None:
        raise DataError(f"{path}: is the file that is read; choose another --output-dir")
    if wanted.train_share is not None:
        sides = _sides(examples, train_share=wanted.train_share, validation_share=wanted.validation_share)
        if not all(sides.values()):
            raise DataError(f"a split of {len(examples)} rows by {wanted.train_share:g} left one side empty")
        parts += [(wanted.output_dir / f"{name}_{side}.jsonl", rows) for side, rows in sides.items()]
    return parts


def _sides(
    examples: Sequence[Example], *, train_share: float, validation_share: float | None
) -> dict[str, list[Example]]:
    """The rows by the name of their part."""
    if validation_share is None:
        split = split_by_content(examples, eval_fraction=1 - train_share, salt=SALT)
        return {"train": split.train, "test": split.held_out}
    test_share = 1 - train_share - validation_share
    split = split_by_content(examples, eval_fraction=validation_share, test_fraction=test_share, salt=SALT)
    return {"train": split.train, "validation": split.held_out, "test": split.test}


def _is_source(path: Path, wanted: Wanted) -> bool:
    source = Path(wanted.dataset)
    return path.exists() and source.exists() and path.samefile(source)


def _write(path: Path, examples: Sequence[Example]) -> None:
    """All of the file or nothing of it."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # it may be a link to a file that is not ours
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{_line(example)}\n" for example in examples)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error


def _line(example: Example) -> str:
    values = example.format.values(example.row)
    if example.format.name == "alpaca":
        values = {
            "instruction": values["instruction"],
            "input": values.get("input") or "",
            "output": values["output"],
        }
    return json.dumps(values, ensure_ascii=False)
