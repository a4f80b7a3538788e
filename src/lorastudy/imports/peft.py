"""Result files of PEFT's `method_comparison` (MetaMathQA): one JSON file for each run.

    run_info    experiment_name, train_config (model, rate, batch, steps, seed), peft_config (none: full fine-tuning)
    train_info  metrics by step; the last has `test accuracy` and `forgetting`; memory, time, sizes
    meta_info   commits of the model and the data sets, versions of the packages, the accelerator

The files hold no items, so two runs are compared as two shares of the same number of items. The files do not hold that
number either. It is 1,319, the number of rows in GSM8K's test split, and every accuracy must be a whole number of them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lorastudy.errors import DataError
from lorastudy.imports import refuse
from lorastudy.lint.rates import FULL_FINE_TUNING, METHOD_KEY
from lorastudy.store.views import ImportedResult, ImportedScore
from lorastudy.suite.experiment import tagged_hash

TOOL = "peft method_comparison"
#: Rows of the test split of openai/gsm8k, which this benchmark scores.
NUM_GSM8K_TEST_ROWS = 1_319

#: Keys of a peft_config that have our own names, and keys that do not affect the training.
_OWN_KEYS = {"r", "lora_alpha", "use_rslora", "lora_dropout", "target_modules", "layers_to_transform"}
_SILENT_KEYS = {"peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision",
                "inference_mode", "rank_pattern", "alpha_pattern"}  # fmt: skip


class _TrainConfig(BaseModel):
    model_id: str
    dtype: str
    max_seq_length: int
    batch_size: int
    max_steps: int
    seed: int
    optimizer_type: str
    optimizer_kwargs: dict[str, Any]
    lr_scheduler: str | None = None
    grad_norm_clip: float | None = None


class _RunInfo(BaseModel):
    created_at: str
    experiment_name: str
    train_config: _TrainConfig
    peft_config: dict[str, Any] | None
    error_msg: str = ""


class _TrainInfo(BaseModel):
    status: str
    metrics: list[dict[str, Any]]
    num_trainable_params: int | None = None
    num_total_params: int | None = None
    file_size: int | None = None
    accelerator_memory_max: int | None = None
    train_time: float | None = None


class _Commit(BaseModel):
    sha: str | None = None


class _MetaInfo(BaseModel):
    model_info: _Commit | None = None
    dataset_info: dict[str, _Commit] = {}
    package_info: dict[str, str | None] = {}
    system_info: dict[str, str | None] = {}


class _ResultFile(BaseModel):
    run_info: _RunInfo
    train_info: _TrainInfo
    meta_info: _MetaInfo


def read_peft(
    files: Sequence[Path], *, suite_name: str, num_items: int = NUM_GSM8K_TEST_ROWS
) -> list[ImportedResult]:
    """The result in each file.

    Raises:
        DataError: lists every file that is not such a result, or whose run did not succeed.
    """
    results, problems = [], []
    for file in files:
        try:
            results.append(_read(file, suite_name=suite_name, num_items=num_items))
        except DataError as error:
            problems.append(str(error))
    refuse(problems)
    return results


def _read(file: Path, *, suite_name: str, num_items: int) -> ImportedResult:
    content = file.read_bytes()
    try:
        parsed = _ResultFile.model_validate(json.loads(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{file}: not a result of PEFT's method_comparison: {where}: {first['msg'].lower()}"
        ) from error
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON: {error}") from error
    return ImportedResult(
        suite_name=suite_name,
        arm=parsed.run_info.experiment_name,
        seed=parsed.run_info.train_config.seed,
        settings=_settings(parsed.run_info),
        sources=_sources(parsed.meta_info, model_id=parsed.run_info.train_config.model_id),
        scores=_scores(file, parsed.train_info, num_items=num_items),
        costs=_costs(parsed.train_info),
        tool=TOOL,
        file=file.name,
        file_sha256=hashlib.sha256(content).hexdigest(),
        location=file.name,
    )


def _settings(run: _RunInfo) -> dict[str, Any]:
    """The configuration under our names. The rest of PEFT's becomes one hash, so that it tells arms apart."""
    train, adapter = run.train_config, run.peft_config or {}
    rest = {
        key: value
        for key, value in adapter.items()
        if key not in _OWN_KEYS | _SILENT_KEYS and value is not None
    }
    settings = {
        METHOD_KEY: str(adapter.get("peft_type", FULL_FINE_TUNING)).lower(),
        "base_model": train.model_id,
        "quantization": {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(train.dtype),
        "max_seq_length": train.max_seq_length,
        "max_steps": train.max_steps,
        "per_device_train_batch_size": train.batch_size,
        "learning_rate": train.optimizer_kwargs.get("lr"),
        "weight_decay": train.optimizer_kwargs.get("weight_decay"),
        "optimizer": train.optimizer_type,
        "lr_scheduler_type": train.lr_scheduler,
        "max_grad_norm": train.grad_norm_clip,
        "lora_rank": adapter.get("r"),
        **{
            key: adapter.get(key)
            for key in ("lora_alpha", "use_rslora", "lora_dropout", "layers_to_transform")
        },
        "target_modules": _modules(adapter.get("target_modules")),
        "peft_config": tagged_hash("peft", rest) if adapter else None,
    }
    return {key: value for key, value in settings.items() if value is not None}


def _modules(given: object) -> list[str] | None:
    return sorted(map(str, given)) if isinstance(given, list) else [str(given)] if given else None


def _sources(meta: _MetaInfo, *, model_id: str) -> dict[str, str]:
    packages = {name.removesuffix("-version"): version for name, version in meta.package_info.items()}
    commit = packages.get("peft-commit-hash")
    parts = [
        f"{name} {packages[name]}"
        for name in ("torch", "transformers", "peft", "bitsandbytes")
        if packages.get(name)
    ]
    parts += [f"peft commit {commit[:12]}"] if commit else []
    parts += [str(accelerator)] if (accelerator := meta.system_info.get("accelerator")) else []
    model = meta.model_info.sha if meta.model_info else None
    data = {name: info.sha for name, info in meta.dataset_info.items() if info.sha}
    sources = {
        "base_model": f"hub:{model_id}@{model}" if model else None,
        "dataset": data.get("metamath"),
        "eval_dataset": data.get("gsm8k"),
        "environment": ", ".join(parts) or None,
    }
    return {key: value for key, value in sources.items() if value is not None}


def _scores(file: Path, train: _TrainInfo, *, num_items: int) -> tuple[ImportedScore, ...]:
    if train.status != "success":
        raise DataError(f"{file}: the run did not succeed: its status is {train.status!r}")
    last: Mapping[str, Any] = train.metrics[-1] if train.metrics else {}
    accuracy = last.get("test accuracy")
    if not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:
        raise DataError(f"{file}: its last metrics have no `test accuracy` between 0 and 1")
    if abs(accuracy * num_items - round(accuracy * num_items)) > 1e-6 * num_items:
        raise DataError(
            f"{file}: test accuracy {accuracy!r} is not a share of {num_items} items; say how many with --num-items"
        )
    scores = [
        ImportedScore(
            metric="test accuracy", value=accuracy, unit="share", lower_is_better=False, num_items=num_items
        )
    ]
    forgetting = last.get("forgetting")
    if isinstance(forgetting, int | float):
        scores.append(ImportedScore(metric="forgetting", value=forgetting, unit="", lower_is_better=True))
    return tuple(scores)


def _costs(train: _TrainInfo) -> dict[str, float]:
    costs = {
        "num_trainable_parameters": train.num_trainable_params,
        "num_total_parameters": train.num_total_params,
        "adapter_bytes": train.file_size,
        "peak_memory_bytes": train.accelerator_memory_max,
        "train_seconds": train.train_time,
    }
    return {key: value for key, value in costs.items() if value is not None}
