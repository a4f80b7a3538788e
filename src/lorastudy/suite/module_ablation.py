"""Which modules are worth an adapter."""

from collections.abc import Mapping
from typing import Any

from lorastudy.suite.base_experiment import BaseExperiment, adapter_settings
from lorastudy.suite.naming import value_in_name


class ModuleAblation(BaseExperiment):
    """Arms differ in `target_modules`."""

    question = "Which modules should carry the adapter?"
    key_questions = (
        "Which modules are most important?",
        "Can we skip some layers for efficiency?",
        "Is MLP fine-tuning necessary?",
    )

    def get_lora_config(self) -> Mapping[str, Any]:
        """The adapter as the suite gives it."""
        return adapter_settings(self.config)

    def get_experiment_name(self) -> str:
        """`module_ablation_qkvo`; module names are joined: `module_ablation_q_proj-v_proj`."""
        return f"module_ablation_{value_in_name(self.config.target_modules)}"
