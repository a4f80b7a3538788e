"""From the paths in the settings to rendered rows: training, held-out, forgetting."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorastudy.data.chat import ChatTemplate
from lorastudy.data.examples import Example
from lorastudy.data.formats import Format, asks_nothing, recognise
from lorastudy.data.prompts import render
from lorastudy.data.sources import Row, read_rows
from lorastudy.data.splits import content_hash, num_duplicates, overlap, split_by_content
from lorastudy.errors import DataError
from lorastudy.spec.settings import Settings


@dataclass(frozen=True, kw_only=True)
class StudyData:
    """All rows of one pack. `forgetting` is None when no such set is named.

    `num_leaked` counts held-out rows whose content is also trained on: their scores say nothing about new rows.
    `num_empty_prompts` counts training rows that ask nothing.
    """

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    forgetting: tuple[Example, ...] | None
    num_duplicates: int
    num_leaked: int
    num_empty_prompts: int


def num_empty_prompts(examples: Sequence[Example]) -> int:
    """Rows that ask nothing: their answer is trained, and there is nothing that it answers. Plain text has no prompt."""
    return sum(asks_nothing(example.row, example.format) for example in examples)


def load_examples(
    path: str, *, max_samples: int | None = None, chat_template: ChatTemplate | None = None
) -> tuple[Format, list[Example]]:
    """The format of the data set, and its first `max_samples` rows, rendered.

    Raises:
        DataError: the file cannot be read, its format is unknown, or a row lacks what the format needs.
    """
    rows = read_rows(path)[:max_samples]
    try:
        fmt = recognise(rows)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return fmt, to_examples(rows, fmt, chat_template=chat_template)


def to_examples(
    rows: Sequence[Row], fmt: Format, *, chat_template: ChatTemplate | None = None
) -> list[Example]:
    """The rows, rendered and hashed; they must have been checked against the format."""
    return [
        Example(
            row=row,
            format=fmt,
            segments=render(row, fmt, chat_template=chat_template),
            content_hash=content_hash(row, fmt),
        )
        for row in rows
    ]


def train_and_eval(settings: Settings, *, chat_template: ChatTemplate | None = None) -> StudyData:
    """The rows that the settings name.

    `max_train_samples` counts rows of the training file, before a part of it is held out; `max_eval_samples`
    counts held-out rows, wherever they come from, and forgetting rows, which are scored in the same way.

    Raises:
        DataError: a file cannot be used, or holding out left one side without rows.
    """
    _, train = load_examples(
        settings.dataset_path, max_samples=settings.max_train_samples, chat_template=chat_template
    )
    duplicates = num_duplicates(train)
    if settings.eval_dataset_path is None:
        split = split_by_content(train, eval_fraction=settings.eval_fraction)
        if not split.train or not split.held_out:
            raise DataError(_one_sided(settings, len(train)))
        train, held_out = split.train, split.held_out[: settings.max_eval_samples]
    else:
        held_out = _scored(settings.eval_dataset_path, settings, chat_template=chat_template)
    forgetting = settings.forgetting_dataset_path
    return StudyData(
        train=tuple(train),
        held_out=tuple(held_out),
        forgetting=None
        if forgetting is None
        else tuple(_scored(forgetting, settings, chat_template=chat_template)),
        num_duplicates=duplicates,
        num_leaked=overlap(train, held_out),
        num_empty_prompts=num_empty_prompts(train),
    )


def _scored(path: str, settings: Settings, *, chat_template: ChatTemplate | None) -> list[Example]:
    return load_examples(path, max_samples=settings.max_eval_samples, chat_template=chat_template)[1]


def _one_sided(settings: Settings, num_rows: int) -> str:
    return (
        f"{settings.dataset_path}: holding out {settings.eval_fraction:g} of {num_rows} rows left one side empty; "
        "give more rows, another eval_fraction, or held-out rows of their own (eval_dataset_path)"
    )
