"""Any comparison: arms differ in whatever the suite varies."""

from collections.abc import Mapping
from typing import Any

from lorastudy.suite.base_experiment import BaseExperiment, adapter_settings
from lorastudy.suite.naming import label


class Custom(BaseExperiment):
    """Arms differ in the settings that the suite varies."""

    question = "Which of these configurations is better?"
    key_questions = (
        "Which configuration has the lowest held-out loss?",
        "What does each configuration cost in memory and time?",
        "Which differences are larger than the noise of the seeds?",
    )

    def get_lora_config(self) -> Mapping[str, Any]:
        """The adapter as the suite gives it."""
        return adapter_settings(self.config)

    def get_experiment_name(self) -> str:
        """`custom_r16_lr0.0002`: what is varied, and its value here; `custom` when nothing is."""
        return "_".join(["custom", *(label(key, getattr(self.config, key)) for key in self.config.varied)])
