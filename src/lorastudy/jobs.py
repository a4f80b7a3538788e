"""What the control side asks a worker to do besides training a pack. Written as `job.json`."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from lorastudy.spec.settings import Quantization


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """Score, ask and time one trained adapter."""

    checkpoint: str
    base_model: str
    quantization: Quantization
    dataset: str | None
    benchmark: bool
    profile_inference: bool
    max_seq_length: int
    max_samples: int | None
    max_generation_samples: int
    max_new_tokens: int

    def write(self, folder: Path) -> None:
        """Write `job.json` into the folder."""
        (folder / "job.json").write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
