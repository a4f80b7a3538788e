"""All data sets of a study as tokens, by the name of their split.

A worker trains on them, and a plan counts them. What is counted depends on the data, the tokenizer and the length only,
never on the arms or the steps of a pack: a check, a dry run, every pack and the report give the same numbers. Of at most
`COUNTED_ROWS` training rows, all are read. Of more, a fixed sample of that many is counted; the rows that a training
uses are read besides.
"""

import heapq
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

from lorastudy.data.batches import MAX_GROUPED_STEPS, row_order
from lorastudy.data.load import DataRows, DataSet, StudyData, position
from lorastudy.data.near_copies import near_copies
from lorastudy.data.prompts import Example
from lorastudy.data.tokenise import Tokenizer, TokenSet, tokenise
from lorastudy.errors import DataError
from lorastudy.protocol.records import DataSummary
from lorastudy.suite.settings import Settings

#: Training rows that are read and counted, whatever a training uses. Reading them takes seconds.
COUNTED_ROWS = 10_000
#: The least number of training rows to read for a short training: fewer might all be refused for their length.
MIN_ROWS = 256
#: Splits whose rows are answered for exact match.
_ASKED_SPLITS = ("eval", "test")


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The largest number of training rows that a training uses, for each of several orders."""

    data_seeds: Sequence[int]
    num_rows: int

    @classmethod
    def of(
        cls, settings: Settings, *, max_steps: Iterable[int | None], data_seeds: Sequence[int]
    ) -> "Reach | None":
        """The reach of trainings with these steps; None if one of them counts epochs, which use all rows."""
        steps = list(max_steps)
        if None in steps:
            return None
        rows_per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        num_rows = max(number or 0 for number in steps) * rows_per_step
        if settings.group_by_length:
            num_rows += MAX_GROUPED_STEPS * rows_per_step
        return cls(data_seeds=data_seeds, num_rows=num_rows)


def token_sets(
    study: StudyData, settings: Settings, *, tokenizer: Tokenizer, reach: Reach | None
) -> Mapping[str, TokenSet]:
    """The tokens of `train` and `eval`, and of `test` and `forgetting` if the study has such rows.

    Of more than `COUNTED_ROWS` training rows, only those within `reach` become rows to train on; None reads all.

    Raises:
        DataError: a set cannot be used with this tokenizer; it names the file and the base model.
    """
    parts = {"eval": study.held_out, "test": study.test, "forgetting": study.forgetting}
    named = partial(split_tokens, settings=settings, tokenizer=tokenizer)
    train = _training_tokens(study.train, settings, tokenizer=tokenizer, reach=reach)
    if settings.train_on_inputs:  # what is counted and guessed from stays the answers
        train = replace(train, rows=train.rows.with_inputs_trained(), sample=train.counted)
    sets = {"train": train}
    for split, rows in parts.items():
        if rows is not None:
            examples = rows.read()
            tokens = named(examples, split=split)
            groups = prompt_groups([examples[place] for place in tokens.places])
            summary = replace(tokens.summary, groups=groups)
            if split in _ASKED_SPLITS and settings.max_generation_samples:
                summary = _with_answers(summary, tokens, settings=settings)
            sets[split] = replace(tokens, summary=summary)
    return _with_copies(sets, study)


def _with_copies(sets: Mapping[str, TokenSet], study: StudyData) -> Mapping[str, TokenSet]:
    """The sets, with summaries that count the rows that also occur in another set."""
    near = near_copies(study)
    found = {}
    for split, tokens in sets.items():
        compared = near.get(split)
        summary = replace(
            tokens.summary,
            num_duplicate_rows=study.num_duplicates if split == "train" else None,
            num_leaked_rows=study.num_leaked.get(split),
            num_known_prompts=study.num_known_prompts.get(split),
            num_near_copies=None if compared is None else compared.num_near,
            num_compared_rows=None if compared is None else compared.num_compared,
            num_compared_with=None if compared is None else compared.num_compared_with,
            num_known_rows=None if compared is None else compared.num_known,
            split_by=study.split_by.get(split),
        )
        found[split] = replace(tokens, summary=summary)
    return found


def split_tokens(
    examples: Iterable[Example], *, settings: Settings, tokenizer: Tokenizer, split: str
) -> TokenSet:
    """The tokens of some rows of a split.

    Raises:
        DataError: as `token_sets`.
    """
    try:
        return tokenise(examples, tokenizer=tokenizer, max_seq_length=settings.max_seq_length, split=split)
    except DataError as error:
        where = f"{_path_of(split, settings)}, with base_model {settings.base_model}"
        raise DataError(f"{where}: {error}") from error


def longest_row(sets: Mapping[str, TokenSet]) -> int:
    """The number of tokens of the longest row that is trained, scored or counted."""
    return max(
        length
        for tokens in sets.values()
        for part in (tokens, tokens.counted)
        for length in part.rows.lengths()
    )


def _training_tokens(
    train: DataRows, settings: Settings, *, tokenizer: Tokenizer, reach: Reach | None
) -> TokenSet:
    """The training rows: all of them, or those within reach with a sample that is counted."""

    def reading(numbers: Sequence[int]) -> _Reading:
        rows = replace(train, numbers=numbers)
        return _Reading(
            dataset=train.dataset,
            numbers=array("I", numbers).tobytes(),
            prompt_format=settings.prompt_format,
            max_seq_length=settings.max_seq_length,
            tokenizer=tokenizer,
            read=lambda: split_tokens(rows, settings=settings, tokenizer=tokenizer, split="train"),
        )

    if len(train) <= COUNTED_ROWS:
        return _read_once(reading(train.numbers))
    sample = _read_once(reading([train.numbers[place] for place in _sample(len(train))]))
    summary = replace(sample.summary, num_unread_rows=len(train) - sample.num_given)
    tokens_of = partial(split_tokens, settings=settings, tokenizer=tokenizer, split="train")
    trained = _reached(train, reach, tokens_of=tokens_of)
    return replace(trained, summary=summary, sample=sample)


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """Rows to read, equal for the same rows in the same tokens. `read` reads them."""

    dataset: DataSet
    numbers: bytes
    prompt_format: str
    max_seq_length: int
    tokenizer: Tokenizer
    read: Callable[[], TokenSet] = field(compare=False)


@lru_cache(maxsize=2)
def _read_once(reading: _Reading) -> TokenSet:
    """The rows as tokens. A worker reads them once for all its packs."""
    return reading.read()


def _sample(num_rows: int) -> Sequence[int]:
    """The places of the training rows that are counted, rising: always the same for so many rows."""

    def order(place: int) -> float:
        return position(str(place), purpose="counted rows")

    return sorted(heapq.nsmallest(COUNTED_ROWS, range(num_rows), key=order))


def _reached(
    train: DataRows, reach: Reach | None, *, tokens_of: Callable[[Iterable[Example]], TokenSet]
) -> TokenSet:
    """The training rows within reach. Further rows replace the refused ones."""
    num_rows = len(train)
    num_looked_at = num_rows if reach is None else min(max(reach.num_rows, MIN_ROWS), num_rows)
    while reach is not None and num_looked_at < num_rows:
        orders = [
            row_order(num_rows, data_seed=seed, num_rows_needed=num_looked_at) for seed in reach.data_seeds
        ]
        chosen = sorted({row for order in orders for row in order})
        found = tokens_of(train.read(chosen))
        tokens = replace(
            found,
            places=tuple(chosen[place] for place in found.places),
            refused=frozenset(chosen[place] for place in found.refused),
            num_given=num_rows,
        )
        if all(num_looked_at - len(tokens.refused & set(order)) >= reach.num_rows for order in orders):
            return tokens
        num_looked_at = min(num_rows, 2 * num_looked_at)
    return tokens_of(train)


def _with_answers(summary: DataSummary, tokens: TokenSet, *, settings: Settings) -> DataSummary:
    """The summary with the number of rows asked for exact match, and of those whose answer exceeds `max_new_tokens`."""
    asked = [row for row in tokens.rows if row.asks][: settings.max_generation_samples]
    num_long = sum(row.num_reference_tokens > settings.max_new_tokens for row in asked)
    return replace(summary, num_asked_rows=len(asked), num_long_answers=num_long)


def _path_of(split: str, settings: Settings) -> str | None:
    """The file of a split. Held-out and test rows without a file of their own come from another split's file."""
    held_out = settings.eval_dataset_path or settings.dataset_path
    return {
        "train": settings.dataset_path,
        "eval": held_out,
        "test": settings.test_dataset_path or held_out,
        "forgetting": settings.forgetting_dataset_path,
    }[split]


def prompt_groups(examples: Sequence[Example]) -> tuple[int, ...] | None:
    """A group number for each row: rows with the same prompt share one. None if no two rows share a prompt."""
    numbers: dict[str, int] = {}
    groups = tuple(numbers.setdefault(example.prompt_hash, len(numbers)) for example in examples)
    return None if len(numbers) == len(groups) else groups
