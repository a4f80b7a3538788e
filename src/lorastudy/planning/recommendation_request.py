"""The request for a recommendation, read from options and filled in from a suite file or a suite in the store.

Its question, or the store's, judges each study that may answer.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lorastudy.analysis.overview import Criterion, criterion_of
from lorastudy.data.load import DataRows, train_and_eval
from lorastudy.data.sources import dataset_fingerprint
from lorastudy.errors import StudyError
from lorastudy.report.numbers import listing
from lorastudy.report.sections.front import late_note, part
from lorastudy.stats.study import DECIDING, Study, set_late
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import StatedQuestion
from lorastudy.suite.base_model import base_model_fingerprint
from lorastudy.suite.methods import METHOD_KEYS, without_plain
from lorastudy.suite.question import Question
from lorastudy.suite.settings import Settings, settings_from_options
from lorastudy.suite.suite_file import load_suite

#: Settings that a suite fills in. The recommendation finds the others.
_FILLED = (
    "base_model", "trust_remote_code", "quantization", "max_seq_length", "prompt_format", "dataset_path", "eval_dataset_path", "eval_fraction",
    "test_dataset_path", "test_fraction", "max_train_samples", "max_eval_samples", "max_steps", "num_train_epochs",
)  # fmt: skip
#: Settings that stay as requested, even if a study has other values.
_FIXED = ("quantization", "max_seq_length")
#: Settings that must have a single value, with the option that selects one.
_SINGLE = {"base_model": "--base-model", "dataset_path": "--dataset"}


#: The settings of a configuration that a user copies into a suite file.
SHOWN_SETTINGS = (
    "lora_rank", "lora_alpha", "use_rslora", "target_modules", "learning_rate", "quantization",
    "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "per_device_train_batch_size",
    "gradient_accumulation_steps", "gradient_checkpointing", "max_seq_length", "lr_scheduler_type", "max_steps",
    "num_train_epochs",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RecommendationRequest:
    """The model, data and memory that the user asks about. `budget_bytes` is the memory after the margin."""

    base: Settings
    """Base model, length of rows and of training. Its data count only if `has_data`."""
    has_data: bool
    budget_bytes: int
    margin: float | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """The requested precision of the base and length of rows, if any. The recommendation keeps them."""
    suite_name: str | None = None
    """Among studies that are equally near, the one of this suite answers."""
    is_only: bool = False
    """Whether no other suite may answer."""
    question: Question | None = None
    """The suite file's question, if there is a file. It overrides the stored question."""
    suite_arms: tuple[Settings, ...] = ()
    """The arms of the suite file, if there is a file."""

    def unlike_suite(self, settings: Settings) -> tuple[str, ...]:
        """The shown settings that no arm of the suite file has, a line each. The rate may have been searched for."""
        found = shown_settings(settings)
        arms = [shown_settings(arm) for arm in self.suite_arms]
        lines = []
        for key in found.keys() - {"learning_rate"} if arms else ():
            stated = dict.fromkeys(_as_text(arm.get(key)) for arm in arms)
            if _as_text(found[key]) not in stated:
                lines.append(f"{key}: {_as_text(found[key])}, where the file has {listing(stated)}")
        return tuple(sorted(lines))

    @cached_property
    def base_fingerprint(self) -> str:
        """The base model's fingerprint."""
        return base_model_fingerprint(self.base.base_model)

    @cached_property
    def data_fingerprint(self) -> str | None:
        """The data set's fingerprint; None if the user names no data set."""
        return dataset_fingerprint(self.base.dataset_path) if self.has_data else None

    @cached_property
    def train_rows(self) -> DataRows:
        """The training rows of the data set; they count only if `has_data`."""
        return train_and_eval(self.base).train


def shown_settings(settings: Settings) -> dict[str, Any]:
    """The `SHOWN_SETTINGS` that the configuration has and its keys of a method, as plain JSON values."""
    values = without_plain(settings.model_dump(mode="json"))
    is_4bit = values["quantization"] == "4bit"
    return {
        key: values[key]
        for key in (*METHOD_KEYS, *SHOWN_SETTINGS)
        if values.get(key) is not None and (is_4bit or not key.startswith("bnb"))
    }


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True, kw_only=True)
class RequestedSettings:
    """The part of a request that does not need a memory budget: given and filled-in settings, and the suite."""

    values: Mapping[str, Any]
    suite_name: str | None = None
    is_only: bool = False
    question: Question | None = None
    suite_arms: tuple[Settings, ...] = ()

    def request(self, *, budget_bytes: int, margin: float | None) -> RecommendationRequest:
        """The request with a memory budget."""
        return RecommendationRequest(
            base=self.base,
            has_data="dataset_path" in self.values,
            budget_bytes=budget_bytes,
            margin=margin,
            fixed={key: getattr(self.base, key) for key in _FIXED if key in self.values},
            suite_name=self.suite_name,
            is_only=self.is_only,
            question=self.question,
            suite_arms=self.suite_arms,
        )

    @cached_property
    def base(self) -> Settings:
        """The values as settings.

        Raises:
            StudyError: a value that a suite file may not have.
        """
        return settings_from_options(**self.values)


def read_request(
    given: Mapping[str, Any], *, file: Path | None, suite_name: str | None, database: str
) -> RequestedSettings:
    """The request from the options. A suite, from a file or from the store, fills in what the options leave open.

    Raises:
        StudyError: no base model, or more than one; the suite does not exist, or was imported.
    """
    if file is not None and suite_name is not None:
        raise StudyError(
            "--suite-name: names a suite of the store, and a suite file was given too; give one of them"
        )
    if file is not None:
        suite = load_suite(file)
        arms = [arm.settings for arm in suite.arms]
        filled = _filled(arms, given, where=str(file))
        return RequestedSettings(
            values=filled | dict(given),
            suite_name=suite.name,
            question=suite.question,
            suite_arms=tuple(arms),
        )
    if suite_name is not None:
        arms = _settings_in_store(suite_name, database=database)
        # Data come from the study itself. `trust_remote_code` in a store is no permission to run code now.
        filled = _filled(arms, given, where=suite_name)
        kept = {key: filled[key] for key in ("base_model", *_FIXED) if key in filled}
        return RequestedSettings(values=kept | dict(given), suite_name=suite_name, is_only=True)
    if "base_model" not in given:
        raise StudyError(
            "say what the recommendation is for: a suite file (lorastudy recommend my_suite.yaml), a suite of the store "
            "(--suite-name my_suite), or a model (--base-model)"
        )
    return RequestedSettings(values=given)


def _filled(arms: Sequence[Settings], given: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The filled-in settings: those on which all arms of the suite agree, without those that are None."""
    filled: dict[str, Any] = {}
    for key in _FILLED:
        values = list(dict.fromkeys(getattr(arm, key) for arm in arms))
        if len(values) == 1 and values[0] is not None:
            filled[key] = values[0]
        elif len(values) > 1 and key in _SINGLE and key not in given:
            raise StudyError(
                f"{where}: has arms on {listing(map(str, values))}; choose one with {_SINGLE[key]}"
            )
    if "dataset_path" in given:  # other rows, so the suite's held-out and test rows do not apply
        filled = {key: value for key, value in filled.items() if not key.startswith(("eval_", "test_"))}
    return filled


def _settings_in_store(suite_name: str, *, database: str) -> list[Settings]:
    with ExperimentTracker(database) as tracker:
        results = tracker.get_all_experiments(suite_name=suite_name)
        if not results and tracker.get_imported(suite_name):
            raise StudyError(
                f"--suite-name: {suite_name}: its results were imported, and a recommendation comes from your own runs only; "
                f"lorastudy report --suite-name {suite_name} says what they show"
            )
        there = ", ".join(suite.suite_name for suite in tracker.get_suites()) or "none"
    if not results:
        raise StudyError(f"--suite-name: {suite_name}: {database} has no suite of this name; it has: {there}")
    return [
        Settings.model_validate({key: result.settings[key] for key in _FILLED if key in result.settings})
        for result in results
    ]


def for_a_reader(study: Study, statements: Sequence[StatedQuestion]) -> Study:
    """The study with the seeds of its search, and with its arms under their labels."""
    seeds = frozenset(statements[-1].question.tuning_seeds) if statements else frozenset()
    return replace(study, tuning_seeds=seeds).labelled()


def judged_by(
    study: Study, statements: Sequence[StatedQuestion], *, request: RecommendationRequest
) -> tuple[Criterion, tuple[str, ...]]:
    """The criterion, with notes if it differs from the stored one or was set after results were there.

    `statements` are those of the study's suite. A margin given as an option overrides every other margin.
    """
    stated = statements[-1].question if statements else None
    used = _used(study, stated, request=request)
    criterion = criterion_of(study, used)
    if request.margin is not None:
        criterion = replace(criterion, margin=request.margin, margin_share=None, margin_lost=None)
    return criterion, tuple(_notes(study, statements, used=used, request=request))


def _used(study: Study, stated: Question | None, *, request: RecommendationRequest) -> Question | None:
    """The stored question, overridden by the suite file's question.

    If the study is of another suite than the file's, the stored margin and reference stay where the file has none or
    names an arm that the study does not have.
    """
    own = request.question
    if own is None:
        return stated
    base = stated or Question()
    margin, reference = own.margin, own.reference
    if study.suite_name != request.suite_name:
        margin = margin or base.margin
        reference = reference if _has(study, reference) else base.reference
    return replace(
        base, primary_metric=own.primary_metric, metrics=own.metrics, margin=margin, reference=reference
    )


def _has(study: Study, reference: str | None) -> bool:
    return reference is not None and any(arm.is_named(reference) for arm in study.arms)


def _notes(
    study: Study,
    statements: Sequence[StatedQuestion],
    *,
    used: Question | None,
    request: RecommendationRequest,
) -> Iterator[str]:
    if not statements or used is None:
        return
    stated = statements[-1].question
    late = {one.key: one for one in set_late(statements)}
    for key in DECIDING:
        if key == "margin" and request.margin is not None:
            continue
        if getattr(used, key) != getattr(stated, key):
            yield (
                f"{part(key, used, study=study)}, as the suite file says; the store's question of {study.suite_name} says "
                f"{part(key, stated, study=study)}, and a change after results exist can be chosen to suit them"
            )
        elif key in late and (key != "margin" or used.margin is not None):
            yield late_note(late[key], study)
