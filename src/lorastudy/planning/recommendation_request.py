"""What a recommendation is asked about: given by options, filled in from a suite file, or from a suite of the store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lorastudy.data.sources import dataset_fingerprint
from lorastudy.errors import StudyError
from lorastudy.report.numbers import listing
from lorastudy.store import ExperimentTracker
from lorastudy.suite.base_model import base_model_fingerprint
from lorastudy.suite.question import Question
from lorastudy.suite.settings import Settings, settings_from_options
from lorastudy.suite.suite_file import load_suite

#: What a suite fills in of the question. The rest of its settings is what a recommendation is to find.
_FILLED = (
    "base_model", "trust_remote_code", "quantization", "max_seq_length", "prompt_format", "dataset_path", "eval_dataset_path", "eval_fraction",
    "test_dataset_path", "test_fraction", "max_train_samples", "max_eval_samples", "max_steps", "num_train_epochs",
)  # fmt: skip
#: What stays as it was asked for, whatever a study had instead.
_FIXED = ("quantization", "max_seq_length")
#: Without one of these there is more than one question, and the option that says which is meant.
_SINGLE = {"base_model": "--base-model", "dataset_path": "--dataset"}


@dataclass(frozen=True, kw_only=True)
class RecommendationRequest:
    """What the user asks about, and against which memory. `budget_bytes` is less the margin."""

    base: Settings
    """Base model, length of rows and of training; its data only where `has_data`."""
    has_data: bool
    budget_bytes: int
    margin: float | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Precision of the base and length of rows, where they were asked for: a recommendation keeps to them."""
    suite_name: str | None = None
    """Of the studies that are as near as others, this suite's answers."""
    is_only: bool = False
    """Whether no other suite may answer."""
    question: Question | None = None
    """What the suite file asks, where there is one: it comes before what the store says."""

    @cached_property
    def base_fingerprint(self) -> str:
        """Of the base model."""
        return base_model_fingerprint(self.base.base_model)

    @cached_property
    def data_fingerprint(self) -> str | None:
        """Of the data, where the user names one."""
        return dataset_fingerprint(self.base.dataset_path) if self.has_data else None


@dataclass(frozen=True, kw_only=True)
class RequestedSettings:
    """What to ask about, before it is known what fits: settings that were given or filled in, and the suite."""

    values: Mapping[str, Any]
    suite_name: str | None = None
    is_only: bool = False
    question: Question | None = None

    def request(self, *, budget_bytes: int, margin: float | None) -> RecommendationRequest:
        """The question against a memory."""
        return RecommendationRequest(
            base=self.base,
            has_data="dataset_path" in self.values,
            budget_bytes=budget_bytes,
            margin=margin,
            fixed={key: getattr(self.base, key) for key in _FIXED if key in self.values},
            suite_name=self.suite_name,
            is_only=self.is_only,
            question=self.question,
        )

    @cached_property
    def base(self) -> Settings:
        """As settings.

        Raises:
            StudyError: values that no suite file may have either.
        """
        return settings_from_options(**self.values)


def read_request(
    given: Mapping[str, Any], *, file: Path | None, suite_name: str | None, database: str
) -> RequestedSettings:
    """What the options say, and where they are silent what the suite says: of a file, else of the store.

    Raises:
        StudyError: nothing says which base model, or there is more than one; the suite is not there, or was imported.
    """
    if file is not None and suite_name is not None:
        raise StudyError(
            "--suite-name: names a suite of the store, and a suite file was given too; give one of them"
        )
    if file is not None:
        suite = load_suite(file)
        arms = [arm.settings for arm in suite.arms]
        filled = _filled(arms, given, where=str(file))
        return RequestedSettings(values=filled | dict(given), suite_name=suite.name, question=suite.question)
    if suite_name is not None:
        arms = _settings_in_store(suite_name, database=database)
        # A study answers for its own data. And that a store trusts a model's code is no reason to.
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
    """Of what a suite fills in, that which all its arms agree on, and that was said at all."""
    told: dict[str, Any] = {}
    for key in _FILLED:
        values = list(dict.fromkeys(getattr(arm, key) for arm in arms))
        if len(values) == 1 and values[0] is not None:
            told[key] = values[0]
        elif len(values) > 1 and key in _SINGLE and key not in given:
            raise StudyError(
                f"{where}: has arms on {listing(map(str, values))}; say which is meant with {_SINGLE[key]}"
            )
    if "dataset_path" in given:  # other rows, cut by the usual rule
        told = {key: value for key, value in told.items() if not key.startswith(("eval_", "test_"))}
    return told


def _settings_in_store(suite_name: str, *, database: str) -> list[Settings]:
    with ExperimentTracker(database) as tracker:
        results = tracker.get_all_experiments(suite_name=suite_name)
        if not results and tracker.get_imported(suite_name):
            raise StudyError(
                f"--suite-name: {suite_name}: its results were imported, and only runs of one's own are recommended from; "
                f"lorastudy report --suite-name {suite_name} says what they show"
            )
        there = ", ".join(suite.suite_name for suite in tracker.get_suites()) or "none"
    if not results:
        raise StudyError(f"--suite-name: {suite_name}: {database} has no suite of this name; it has: {there}")
    return [
        Settings.model_validate({key: result.settings[key] for key in _FILLED if key in result.settings})
        for result in results
    ]
