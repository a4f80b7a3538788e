"""What becomes of a suite's rows, before it runs: whether the base model's tokenizer knows them, and how many are cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lorastudy.errors import DataError, StudyError
from lorastudy.planning.answers import Answers
from lorastudy.planning.estimate import by_pack
from lorastudy.protocol.records import RowsRead
from lorastudy.suite.experiment import Experiment, canonical_json
from lorastudy.suite.settings import Settings

#: The settings that decide which rows are read.
_DATA_KEYS = (
    "dataset_path", "eval_dataset_path", "test_dataset_path", "forgetting_dataset_path", "eval_fraction",
    "test_fraction", "max_train_samples", "max_eval_samples",
)  # fmt: skip
#: Those that decide as which tokens.
_TOKEN_KEYS = ("max_seq_length", "prompt_format", "base_model", "trust_remote_code")


@dataclass(frozen=True, kw_only=True)
class RowsChecked:
    """What a worker found when it read rows as a run would."""

    read: Mapping[str, tuple[RowsRead, ...]] = field(default_factory=dict)
    """By `rows_key`, the splits of those that could be read."""
    unknown: tuple[str, ...] = ()
    """What could not be found out, a line for each base model."""


def data_key(settings: Settings) -> str:
    """Equal for settings that read the same rows."""
    return canonical_json([getattr(settings, key) for key in _DATA_KEYS])


def rows_key(settings: Settings) -> str:
    """Equal for settings whose rows become the same tokens."""
    return canonical_json([getattr(settings, key) for key in (*_DATA_KEYS, *_TOKEN_KEYS)])


def check_rows(experiments: Sequence[Experiment], answers: Answers) -> RowsChecked:
    """Have a worker read the experiments' rows as a run would.

    The answers are those that `prepare` asks for, so both together read the rows once.

    Raises:
        DataError: what a run would say of rows that cannot be used with the base model's tokenizer.
    """
    unknown, read = {}, {}
    for estimator in by_pack(experiments, answers, with_data=True):
        base_model = estimator.settings.base_model
        try:
            read[rows_key(estimator.settings)] = estimator.rows_read
        except DataError:
            raise
        except StudyError as error:
            unknown[base_model] = (
                f"whether {base_model} can read the data is not known before it runs: {error}"
            )
    return RowsChecked(read=read, unknown=tuple(unknown.values()))
