"""All data sets of a study as tokens, by the name of their split: what a worker trains on, and what a plan asks about."""

from collections.abc import Mapping
from dataclasses import replace

from lorastudy.data.load import StudyData
from lorastudy.data.splits import prompt_groups
from lorastudy.data.tokenise import Tokenizer, TokenSet, tokenise
from lorastudy.errors import DataError
from lorastudy.spec.settings import Settings


def token_sets(study: StudyData, settings: Settings, *, tokenizer: Tokenizer) -> Mapping[str, TokenSet]:
    """The tokens of `train` and `eval`, and of `test` and `forgetting` where the study has such rows.

    Raises:
        DataError: a set cannot be used with this tokenizer; says which file it came from, and which base model it is.
    """
    parts = {
        "train": study.train,
        "eval": study.held_out,
        "test": study.test,
        "forgetting": study.forgetting,
    }
    sets = {}
    for split, rows in parts.items():
        if rows is not None:
            examples = rows.read()
            try:
                tokens = tokenise(
                    examples, tokenizer=tokenizer, max_seq_length=settings.max_seq_length, split=split
                )
            except DataError as error:
                where = f"{_path_of(split, settings)}, with base_model {settings.base_model}"
                raise DataError(f"{where}: {error}") from error
            if split != "train":  # groups are of rows that are scored
                groups = prompt_groups([examples[place] for place in tokens.places])
                tokens = replace(tokens, summary=replace(tokens.summary, groups=groups))
            sets[split] = tokens
    return sets


def _path_of(split: str, settings: Settings) -> str | None:
    """Held-out and test rows without a file of their own are parts of another one."""
    held_out = settings.eval_dataset_path or settings.dataset_path
    return {
        "train": settings.dataset_path,
        "eval": held_out,
        "test": settings.test_dataset_path or held_out,
        "forgetting": settings.forgetting_dataset_path,
    }[split]
