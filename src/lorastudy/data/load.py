"""From the paths in the settings to rendered rows: training, held-out, forgetting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorastudy.data.chat import ChatTemplate
from lorastudy.data.examples import Example
from lorastudy.data.formats import Format, asks_nothing, recognise, trained_rows
from lorastudy.data.prompts import render
from lorastudy.data.sources import Row, read_rows
from lorastudy.data.splits import Split, content_hash, num_duplicates, overlap, prompt_hash, split_by_content
from lorastudy.errors import DataError
from lorastudy.spec.settings import Settings


@dataclass(frozen=True, kw_only=True)
class StudyData:
    """All rows of one pack. `test` and `forgetting` are None when no such set is asked for.

    `num_leaked` counts, for `eval`, held-out rows whose content is also trained on: their scores say nothing
    about new rows. For `test`, rows whose content is trained on or stands among the held-out rows, which choose.
    `num_empty_prompts` counts training rows that ask nothing.
    """

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    test: tuple[Example, ...] | None
    forgetting: tuple[Example, ...] | None
    num_duplicates: int
    num_leaked: Mapping[str, int]
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
        trained = trained_rows(rows, fmt)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return fmt, to_examples(trained, fmt, chat_template=chat_template)


def to_examples(
    rows: Sequence[Row], fmt: Format, *, chat_template: ChatTemplate | None = None
) -> list[Example]:
    """The rows, rendered and hashed; they must have been checked against the format."""
    return [
        Example(
            row=row,
            format=fmt,
            rendering=render(row, fmt, chat_template=chat_template),
            content_hash=content_hash(row, fmt),
            prompt_hash=prompt_hash(row, fmt),
        )
        for row in rows
    ]


def train_and_eval(settings: Settings, *, chat_template: ChatTemplate | None = None) -> StudyData:
    """The rows that the settings name.

    `max_train_samples` counts rows of the training file, before parts of it are held out; `max_eval_samples`
    counts held-out rows, test rows and forgetting rows, wherever they come from: of each so many.

    Raises:
        DataError: a file cannot be used, or holding out left one part without rows.
    """
    _, train = load_examples(
        settings.dataset_path, max_samples=settings.max_train_samples, chat_template=chat_template
    )
    duplicates = num_duplicates(train)
    split = _held_out(train, settings, chat_template=chat_template)
    test = split.test[: settings.max_eval_samples] or None
    if settings.test_dataset_path is not None:
        test = _scored(settings.test_dataset_path, settings, chat_template=chat_template)
    held_out = split.held_out[: settings.max_eval_samples]
    forgetting = settings.forgetting_dataset_path
    return StudyData(
        train=tuple(split.train),
        held_out=tuple(held_out),
        test=None if test is None else tuple(test),
        forgetting=None
        if forgetting is None
        else tuple(_scored(forgetting, settings, chat_template=chat_template)),
        num_duplicates=duplicates,
        num_leaked={"eval": overlap(split.train, held_out)}
        | ({} if test is None else {"test": overlap([*split.train, *held_out], test)}),
        num_empty_prompts=num_empty_prompts(split.train),
    )


def _held_out(train: Sequence[Example], settings: Settings, *, chat_template: ChatTemplate | None) -> Split:
    """The training rows without those held out of them, the held-out rows, and the test rows that come from either."""
    own, share = settings.eval_dataset_path, settings.test_fraction or 0.0
    if own is None:
        split = split_by_content(train, eval_fraction=settings.eval_fraction, test_fraction=share)
    else:
        limit = settings.max_eval_samples if not share else None
        _, rows = load_examples(own, max_samples=limit, chat_template=chat_template)
        # Salted: a file that was itself cut off by the unsalted hash would fall on one side whole.
        parts = split_by_content(rows, eval_fraction=share, salt="test")
        split = Split(train=list(train), held_out=parts.train, test=parts.held_out)
    if not split.train or not split.held_out or (share and not split.test):
        raise DataError(_one_sided(settings, len(train)))
    return split


def _scored(path: str, settings: Settings, *, chat_template: ChatTemplate | None) -> list[Example]:
    return load_examples(path, max_samples=settings.max_eval_samples, chat_template=chat_template)[1]


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
