"""How large a rank is enough."""

from collections.abc import Mapping
from typing import Any

from lorastudy.suite.base_experiment import BaseExperiment, adapter_settings


class RankAblation(BaseExperiment):
    """Arms differ in `lora_rank`."""

    question = "How large a rank does this model need on this data?"
    key_questions = (
        "How does rank affect model accuracy?",
        "What's the memory overhead of higher ranks?",
        "Where are the diminishing returns?",
    )

    def get_lora_config(self) -> Mapping[str, Any]:
        """The adapter as the suite gives it."""
        return adapter_settings(self.config)

    def get_experiment_name(self) -> str:
        """`rank_ablation_r16`."""
        return f"rank_ablation_r{self.config.lora_rank}"
