"""What a smaller base costs in quality."""

from collections.abc import Mapping
from typing import Any

from lorastudy.suite.base_experiment import BaseExperiment, adapter_settings


class QuantizationStudy(BaseExperiment):
    """Arms differ in `quantization`, the precision of the frozen base."""

    question = "How far can the base be quantized before the adapter suffers?"
    key_questions = (
        "How much accuracy do we lose with 4-bit?",
        "Is 8-bit worth the extra memory?",
        "What's the speed-accuracy tradeoff?",
    )

    def get_lora_config(self) -> Mapping[str, Any]:
        """The adapter as the suite gives it, on the base in this arm's precision."""
        return {**adapter_settings(self.config), "quantization": self.config.quantization}

    def get_experiment_name(self) -> str:
        """`quantization_study_4bit`."""
        return f"quantization_study_{self.config.quantization}"
