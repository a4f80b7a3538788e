"""All data sets of a study as tokens, by the name of their split: what a worker trains on, and what a plan asks about."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from lorastudy.data.batches import row_order
from lorastudy.data.load import DataRows, StudyData
from lorastudy.data.near_copies import near_copies
from lorastudy.data.prompts import Example
from lorastudy.data.tokenise import Tokenizer, TokenSet, tokenise
from lorastudy.errors import DataError
from lorastudy.protocol.records import DataSummary
from lorastudy.suite.settings import Settings

#: Of training rows, that are looked at however short the training: fewer might all be refused for their length.
MIN_ROWS = 256
#: Splits whose rows are answered for exact match.
_ASKED_SPLITS = ("eval", "test")


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How many training rows are trained on, at most, in each of some orders."""

    data_seeds: Sequence[int]
    num_rows: int

    @classmethod
    def of(
        cls, settings: Settings, *, max_steps: Iterable[int | None], data_seeds: Sequence[int]
    ) -> "Reach | None":
        """Of trainings of so many steps each; None where one of them goes by epochs, which take all rows."""
        steps = list(max_steps)
        if None in steps:
            return None
        rows_per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        return cls(data_seeds=data_seeds, num_rows=max(number or 0 for number in steps) * rows_per_step)


def token_sets(
    study: StudyData, settings: Settings, *, tokenizer: Tokenizer, reach: Reach | None
) -> Mapping[str, TokenSet]:
    """The tokens of `train` and `eval`, and of `test` and `forgetting` where the study has such rows.

    Of the training rows only those are read that training reaches; without `reach` it reaches all.

    Raises:
        DataError: a set cannot be used with this tokenizer; says which file it came from, and which base model it is.
    """
    parts = {"eval": study.held_out, "test": study.test, "forgetting": study.forgetting}
    named = partial(split_tokens, settings=settings, tokenizer=tokenizer)
    sets = {"train": _reached(study.train, reach, tokens_of=partial(named, split="train"))}
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
    """The sets, whose summaries count the rows that stand in another set too."""
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


def _reached(
    train: DataRows, reach: Reach | None, *, tokens_of: Callable[[Iterable[Example]], TokenSet]
) -> TokenSet:
    """The rows that training reaches. Other rows take the place of rows that turn out to be refused."""
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
            summary=replace(found.summary, num_unread_rows=num_rows - len(chosen) or None),
        )
        if all(num_looked_at - len(tokens.refused & set(order)) >= reach.num_rows for order in orders):
            return tokens
        num_looked_at = min(num_rows, 2 * num_looked_at)
    return tokens_of(train)


def _with_answers(summary: DataSummary, tokens: TokenSet, *, settings: Settings) -> DataSummary:
    """The summary with the number of rows that exact match asks, and of those whose answer is longer than it may be."""
    asked = [row for row in tokens.rows if row.asks][: settings.max_generation_samples]
    num_long = sum(row.num_reference_tokens > settings.max_new_tokens for row in asked)
    return replace(summary, num_asked_rows=len(asked), num_long_answers=num_long)


def _path_of(split: str, settings: Settings) -> str | None:
    """Held-out and test rows without a file of their own are parts of another one."""
    held_out = settings.eval_dataset_path or settings.dataset_path
    return {
        "train": settings.dataset_path,
        "eval": held_out,
        "test": settings.test_dataset_path or held_out,
        "forgetting": settings.forgetting_dataset_path,
    }[split]


def prompt_groups(examples: Sequence[Example]) -> tuple[int, ...] | None:
    """For each row a number that rows of one prompt share, by first appearance; None where no two rows do."""
    numbers: dict[str, int] = {}
    groups = tuple(numbers.setdefault(example.prompt_hash, len(numbers)) for example in examples)
    return None if len(numbers) == len(groups) else groups
