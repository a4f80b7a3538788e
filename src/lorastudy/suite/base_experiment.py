"""What an experiment type is: a class that says an arm's LoRA configuration and its name.

To add a type, subclass `BaseExperiment` in a file of your own and name it in a suite as
`experiment_type: path/to/file.py:MyExperiment`; nothing in the package changes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from lorastudy.errors import StudyError
from lorastudy.suite.levels import LENGTH_KEYS
from lorastudy.suite.settings import Settings
from lorastudy.suite.wording import checked, did_you_mean

#: Names under which `get_lora_config` may give a setting besides the setting's own: peft's and the usual one.
ALIASES: Mapping[str, str] = {"r": "lora_rank", "lora_r": "lora_rank"}


class ExperimentConfig(Settings):
    """The settings of one arm as the suite gives them: `config.lora_rank`, `config.learning_rate`, ..."""

    varied: tuple[str, ...] = ()
    """The settings in which the arms of the suite differ."""

    @classmethod
    def of(cls, settings: Settings, *, varied: tuple[str, ...] = ()) -> "ExperimentConfig":
        """The same values again, as a configuration."""
        return cls.model_construct(**{**dict(settings), "varied": varied})


class BaseExperiment(ABC):
    """One arm of an experiment type. Subclasses say what its adapter is and what it is called."""

    question: ClassVar[str] = "Which of these configurations is better?"
    key_questions: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config

    @abstractmethod
    def get_lora_config(self) -> Mapping[str, Any]:
        """Settings that this type decides. They win over the suite's.

        `lora_r` (or `r`, `lora_rank`), `lora_alpha`, `lora_dropout`, `target_modules`, `use_rslora`, and any
        other setting by its name.
        """

    @abstractmethod
    def get_experiment_name(self) -> str:
        """What an arm is called that the suite gives no name; also its output folder."""


def settings_of(experiment: BaseExperiment) -> Settings:
    """The arm's settings with what `get_lora_config` decides put over them.

    Raises:
        StudyError: an unknown key, or a value out of range.
    """
    kind = type(experiment).__name__
    decided: dict[str, Any] = {}
    for key, value in dict(experiment.get_lora_config()).items():
        name = ALIASES.get(key, key)
        where = f"{kind}.get_lora_config: {key!r}"
        if name not in Settings.model_fields:
            raise StudyError(f"{where} is not a setting{did_you_mean(str(key), Settings.model_fields)}")
        if name in decided:
            raise StudyError(f"{where} and another key both give {name}; keep one")
        try:
            decided[name] = checked(Settings, name, value=value)
        except ValueError as error:
            raise StudyError(f"{where} {error}") from error
    if all(decided.get(key) is not None for key in LENGTH_KEYS):
        raise StudyError(f"{kind}.get_lora_config: {' and '.join(LENGTH_KEYS)} both say how long; keep one")
    if any(decided.get(key) is not None for key in LENGTH_KEYS):
        decided = {**dict.fromkeys(LENGTH_KEYS), **decided}
    given = {key: getattr(experiment.config, key) for key in Settings.model_fields}
    return Settings.model_validate({**given, **decided})


def adapter_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The adapter as the suite gives it, in the form that `get_lora_config` returns."""
    return {
        "lora_r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": config.target_modules,
        "use_rslora": config.use_rslora,
    }
