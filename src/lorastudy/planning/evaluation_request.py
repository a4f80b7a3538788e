"""The request for an evaluation of adapters, read from options and filled in from what was stored beside the adapters."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from lorastudy.errors import StudyError
from lorastudy.protocol.jobs import AdapterOrigin, EvaluateJob
from lorastudy.suite.base_model import base_model_fingerprint, check_base_model, is_model_folder
from lorastudy.suite.settings import Quantization


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """The adapters to evaluate and what to measure. What is None is as in the training of the adapters."""

    checkpoints: tuple[Path, ...]
    base_model: str | None
    dataset: str | None
    benchmark_only: bool
    profile_inference: bool
    quantization: str | None
    max_seq_length: int | None
    max_samples: int | None
    max_generation_samples: int
    max_new_tokens: int
    trust_remote_code: bool

    def job(self) -> EvaluateJob:
        """The job for a worker.

        Raises:
            StudyError: options contradict each other, the adapters were trained in different ways and no option decides,
                an adapter names no base model, or there is no such precision.
        """
        if self.benchmark_only and self.dataset is not None:
            raise StudyError(
                "--benchmark-only answers the benchmark prompts alone; leave out --dataset or --benchmark-only"
            )
        return EvaluateJob(
            checkpoints=tuple(map(str, self.checkpoints)),
            base_model=self.base_model or self._named_base(),
            quantization=_quantization(
                self.quantization or self._trained_with("quantization", "--quantization", without="bf16")
            ),
            dataset=self.dataset,
            benchmark=self.benchmark_only or (self.dataset is None and not self.profile_inference),
            profile_inference=self.profile_inference,
            max_seq_length=self.max_seq_length
            or self._trained_with("max_seq_length", "--max-seq-length", without=512),
            max_samples=self.max_samples,
            max_generation_samples=self.max_generation_samples,
            max_new_tokens=self.max_new_tokens,
            exact_match_pattern=self._trained_with("exact_match_pattern", "", without=None),
            prompt_format=self._trained_with("prompt_format", "", without="auto"),
            trust_remote_code=self.trust_remote_code,
        )

    def check_base(self, base_model: str) -> None:
        """Refuse a base that is not there, or whose files differ from those that an adapter was trained on.

        Raises:
            StudyError: the base cannot be used.
        """
        check_base_model(base_model)
        now = base_model_fingerprint(base_model)
        for checkpoint, origin in self._origins.items():
            if str(checkpoint) == base_model:  # a model of full fine-tuning, scored as it is
                continue
            then = origin.base_model_fingerprint if origin else now
            if then != now and then.startswith("sha256:") and now.startswith("sha256:"):
                raise StudyError(
                    f"--base-model: {base_model}: not the base that {checkpoint} was trained on: its files have other content"
                )

    @cached_property
    def _origins(self) -> Mapping[Path, AdapterOrigin | None]:
        return {checkpoint: AdapterOrigin.read(checkpoint) for checkpoint in self.checkpoints}

    def _trained_with(self, name: str, option: str, *, without: object) -> Any:
        """The value that all adapters were trained with; `without` for an adapter of another program."""
        return shared(
            self._origins, lambda origin: getattr(origin, name) if origin else without, option=option
        )

    def _named_base(self) -> str:
        named = {checkpoint: _named_base(checkpoint) for checkpoint in self.checkpoints}
        return str(shared(named, str, option="--base-model"))


def shared(values: Mapping[Path, Any], value_of: Callable[[Any], Any], *, option: str) -> Any:
    """The value that all adapters share, because they are scored alike.

    Raises:
        StudyError: they differ, and the user has not chosen one.
    """
    found = {value_of(value): checkpoint for checkpoint, value in values.items()}
    if len(found) > 1:
        (one, first), (other, second), *_ = found.items()
        remedy = f"give {option} for both" if option else "evaluate them one after another"
        raise StudyError(f"--checkpoint: {first} was trained with {one}, {second} with {other}; {remedy}")
    return next(iter(found))


def _named_base(checkpoint: Path) -> str:
    config = checkpoint / "adapter_config.json"
    if is_model_folder(checkpoint):
        return str(checkpoint)
    if not config.is_file():
        raise StudyError(
            f"--checkpoint: {checkpoint}: has no adapter_config.json; expected a folder such as output/<name>/final_model"
        )
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StudyError(f"--checkpoint: {config}: is not JSON: {error}") from error
    named = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    if not isinstance(named, str):
        raise StudyError(f"--checkpoint: {checkpoint}: does not name its base model; give --base-model")
    return named


def _quantization(value: str) -> Any:
    if value not in get_args(Quantization):
        raise StudyError(f"--quantization: {value}: one of {', '.join(get_args(Quantization))}")
    return value
