"""What the control side asks a worker to do besides training a pack, and what an adapter says of its making."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lorastudy.spec.experiment import Experiment
from lorastudy.spec.settings import Quantization, Settings

ORIGIN_NAME = "lorastudy.json"


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
    exact_match_pattern: str | None = None
    trust_remote_code: bool = False
    """Never taken over from the adapter: whoever evaluates decides anew."""

    def write(self, folder: Path) -> None:
        """Write `job.json` into the folder."""
        (folder / "job.json").write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class AdapterOrigin:
    """How an adapter came to be, beside its weights as `lorastudy.json`; PEFT does not read it."""

    experiment_id: str
    base_model_fingerprint: str
    quantization: Quantization
    max_seq_length: int
    exact_match_pattern: str | None

    @classmethod
    def of(cls, experiment: Experiment) -> Self:
        """The origin of an experiment's adapter."""
        return cls(
            experiment_id=experiment.id,
            base_model_fingerprint=experiment.sources.base_model,
            quantization=experiment.settings.quantization,
            max_seq_length=experiment.settings.max_seq_length,
            exact_match_pattern=experiment.settings.exact_match_pattern,
        )

    def write(self, folder: Path) -> None:
        """Write it into the adapter's folder."""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        (folder / ORIGIN_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What `write` wrote; None where the folder has none, or one that is not ours."""
        path = folder / ORIGIN_NAME
        if not path.is_file():
            return None
        try:
            origin = cls(**json.loads(path.read_text(encoding="utf-8")))
            Settings(
                quantization=origin.quantization,
                max_seq_length=origin.max_seq_length,
                exact_match_pattern=origin.exact_match_pattern,
            )
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return origin if isinstance(origin.base_model_fingerprint, str) else None
