"""A checked suite, which is its arms with their seeds; its experiments; and the keys of a suite file besides the settings.

The rest of the program uses `Suite` and `Arm`. `SuiteKeys` and `EntryKeys` are the reference of all keys of the file
that are not about an arm's training; those about training are in `Settings`. `expand` turns a suite into its
experiments: every arm with every seed, with a name, fingerprints and an id.
"""

import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lorastudy.errors import StudyError
from lorastudy.suite.base_model import has_chat_template
from lorastudy.suite.experiment import DATA_VERSION, Experiment, Sources
from lorastudy.suite.experiment_types import (
    EXPERIMENT_TYPES,
    BaseExperiment,
    ExperimentConfig,
    resolve_type,
    settings_of,
)
from lorastudy.suite.metrics import BUILT_IN, MetricDefinition
from lorastudy.suite.names import names_of_varied, varied_keys
from lorastudy.suite.question import (
    RUNGS,
    Margin,
    Question,
    all_seeds,
    check_rungs,
    configuration_name,
    is_reference,
)
from lorastudy.suite.settings import Settings
from lorastudy.suite.wording import did_you_mean
from lorastudy.suite.yaml_reading import Place, Problems

MAX_NAME_LENGTH = 100
#: The most experiments of a suite. More are a mistake, such as one factor too many.
MAX_EXPERIMENTS = 10_000
#: The share of test rows with `learning_rate: auto` if the file does not ask for any: of the training file, or of
#: `eval_dataset_path` if there is one.
AUTO_TEST_SHARE, AUTO_TEST_SHARE_OF_EVAL = 0.1, 0.5
#: Two, so that no rate is chosen for one lucky run. Near the best rate the loss is flat, so more seeds gain little.
NUM_TUNING_SEEDS = 2
#: Far from the seeds that users write, so that adding seeds later does not change the tuning seeds.
FIRST_TUNING_SEED = 1_000_000

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
#: Names of devices on Windows, with any ending.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Share = Annotated[float, Field(gt=0, lt=1)]

Fingerprint = Callable[[str], str]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One LoRA configuration under comparison. If `name` is None, the experiment type makes a name.

    `line` is the arm's line in the suite file; None for a suite that does not come from a file.
    """

    name: str | None
    settings: Settings
    seeds: tuple[int, ...]
    line: int | None = None
    seeks_rate: bool = False
    """Whether the arm has `learning_rate: auto`. A search then finds its rate, and the rate in `settings` is unused."""
    places: Mapping[str, str] = field(default_factory=dict, compare=False)
    """By key that the file gives: where its value stands, as `file:line:col: path`."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A checked suite. `path` is None for a suite from flags, a dict or keyword arguments."""

    name: str
    description: str
    experiment_type: str
    path: Path | None
    arms: tuple[Arm, ...]
    notes: tuple[str, ...] = ()
    """Lines of the file that are legal and change nothing, as `file:line:col: path: why`."""
    primary_metric: str = "loss"
    """As in `Question`."""
    margin: Margin | None = None
    reference: str | None = None
    given_tuning_seeds: tuple[int, ...] | None = None
    rungs: tuple[float, ...] = ()
    """Shares of the training at which racing stops arms that are clearly behind; empty without racing."""
    metrics: tuple[MetricDefinition, ...] = ()
    """The metrics that are measured besides those that every run has."""
    time_budget_hours: float | None = None
    """Hours of work after which the suite must have its answer. It then chooses which arms report, and with how many seeds."""

    def __repr__(self) -> str:
        arms, seeds = len(self.arms), len(all_seeds(arm.seeds for arm in self.arms))
        return f"<Suite {self.name}: {arms} arm{'s' * (arms != 1)}, {seeds} seed{'s' * (seeds != 1)}>"

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """Seeds of the runs that choose a rate: the given ones, else the first unused ones from `FIRST_TUNING_SEED` on.

        Empty without a search.
        """
        if not any(arm.seeks_rate for arm in self.arms):
            return ()
        if self.given_tuning_seeds is not None:
            return self.given_tuning_seeds
        used = set(all_seeds(arm.seeds for arm in self.arms))
        return tuple(
            itertools.islice(
                (s for s in itertools.count(FIRST_TUNING_SEED) if s not in used), NUM_TUNING_SEEDS
            )
        )

    def place_of(self, key: str, settings: Settings) -> str | None:
        """Where the file gives these settings their value of a key, as `file:line:col: path`; None if it does not."""
        value = getattr(settings, key, None)
        places = (arm.places.get(key) for arm in self.arms if getattr(arm.settings, key, None) == value)
        return next((place for place in places if place is not None), None)

    @property
    def question(self) -> Question:
        """The suite's question, as the store keeps it before anything runs."""
        rates = {arm.settings.learning_rate for arm in self.arms}
        chooses = len(rates) > 1 or any(arm.seeks_rate for arm in self.arms)
        return Question(
            primary_metric=self.primary_metric,
            margin=self.margin,
            reference=self.reference,
            seeds=all_seeds(arm.seeds for arm in self.arms),
            tuning_seeds=self.tuning_seeds,
            choosing_split="eval" if chooses else None,
            reporting_split="test" if all(arm.settings.has_test_split for arm in self.arms) else "eval",
            rungs=self.rungs,
            metrics=self.metrics,
            time_budget_hours=self.time_budget_hours,
        )

    def to_json(self) -> dict[str, Any]:
        """The suite as plain JSON values. `from_json` is the inverse, except for path, lines and notes."""
        plain = ("name", "description", "experiment_type", "primary_metric", "reference")
        return {
            **{key: getattr(self, key) for key in plain},
            "margin": None if self.margin is None else vars(self.margin),
            "tuning_seeds": None if self.given_tuning_seeds is None else list(self.given_tuning_seeds),
            **({"rungs": list(self.rungs)} if self.rungs else {}),
            **({"time_budget_hours": self.time_budget_hours} if self.time_budget_hours is not None else {}),
            **({"metrics": [metric.to_json() for metric in self.metrics]} if self.metrics else {}),
            "arms": [
                {
                    "name": arm.name,
                    "settings": arm.settings.model_dump(mode="json"),
                    "seeds": list(arm.seeds),
                    "seeks_rate": arm.seeks_rate,
                }
                for arm in self.arms
            ],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The suite that `to_json` wrote, without path, lines and notes."""
        rest = {
            key: value
            for key, value in values.items()
            if key not in {"margin", "tuning_seeds", "arms", "rungs", "metrics"}
        }
        given = values["tuning_seeds"]
        return cls(
            **rest,
            path=None,
            margin=None if values["margin"] is None else Margin(**values["margin"]),
            given_tuning_seeds=None if given is None else tuple(given),
            rungs=tuple(values.get("rungs", ())),
            metrics=tuple(MetricDefinition.from_json(each) for each in values.get("metrics", ())),
            arms=tuple(
                Arm(
                    name=arm["name"],
                    settings=Settings.model_validate_json(json.dumps(arm["settings"])),
                    seeds=tuple(arm["seeds"]),
                    seeks_rate=arm["seeks_rate"],
                )
                for arm in values["arms"]
            ),
        )


class EntryKeys(BaseModel):
    """Keys of an entry under `experiments` beside the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str | None = Field(
        None,
        description="Names the arm and its output folder. Without it the experiment type makes one from what "
        "is varied. Several learning rates or seeds add `_lr<rate>` and `_seed<seed>`.",
    )
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | Seed = Field(
        (0,),
        description="A list of seeds, such as `[0, 1, 2]`; a single number is one seed. The arm runs once with each; a seed decides the "
        "initial weights, dropout and the order of the training rows. Fewer than six seeds can never show a difference at the "
        "5 % level, and fewer than five can never show that an arm is as good within the margin.",
    )

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, value: str | None) -> str | None:
        cause = None if value is None else name_problem(value)
        if cause is not None:
            raise ValueError(cause)
        return value

    @field_validator("seeds", mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, value: tuple[int, ...] | int) -> tuple[int, ...] | int:
        if isinstance(value, tuple) and len(set(value)) < len(value):
            twice = next(seed for seed, times in Counter(value).items() if times > 1)
            raise ValueError(f"the seed {twice} appears twice; equal seeds give equal runs")
        return value


class SuiteKeys(BaseModel):
    """Keys at the top of a suite file beside the settings and `seeds`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    suite_name: str | None = Field(
        None, description="Names the suite in the store and the report; by default the file's name."
    )
    description: str = Field("", description="For the reader of the report.")
    experiment_type: str = Field(
        "custom",
        description="The design: names the arms and says which questions the report answers. "
        f"{', '.join(f'`{name}`' for name in EXPERIMENT_TYPES)}, or `path/to/file.py:Class`.",
    )
    metrics: tuple[Annotated[str, Field(examples=[*BUILT_IN, "path/to/file.py:function"])], ...] = Field(
        (),
        description="Measured of the stored adapters besides loss, token accuracy and exact match, which every run has: "
        "`token_f1`, `rouge_l` and `contains` compare the generated answers with the references; `choice_accuracy` takes the "
        "likeliest of a row's `choices` (docs/data-formats.md); `bits_per_byte` compares across tokenizers; or a function of your own, whose file "
        "is run. Paths start at the suite file. No part of an experiment's identity: a metric that is added later trains nothing.",
    )
    primary_metric: str = Field(
        "loss",
        description="What verdicts are about, on the test rows where there are such: held-out `loss`, `token_accuracy`, "
        "`exact_match`, or one of `metrics`. Stored before the first run, as are the next two; a later change shows in the report.",
    )
    margin: Annotated[float, Field(gt=0)] | Annotated[str, Field(examples=["2%"])] | None = Field(
        None,
        description="How much worse than the reference still counts as good: a number in the metric's unit, or a "
        "share of what the reference gained over the base model, or over guessing without a model where that is better. "
        "Without it nothing is called good enough.",
    )
    reference: str | None = Field(
        None,
        description="The arm that the others are compared with, by its name, with or without its learning rate. "
        "By default the design names it: the largest rank, the highest precision, else the first arm.",
    )
    tuning_seeds: Annotated[tuple[Seed, ...], Field(min_length=2)] | None = Field(
        None,
        description="With `learning_rate: auto`: seeds of the runs that choose the rate. They report nothing, so none "
        f"of them may be among `seeds`. By default {FIRST_TUNING_SEED} and the next.",
    )
    racing: bool | Annotated[tuple[Share, ...], Field(min_length=1)] = Field(
        default=False,
        description="Stop arms that are clearly behind on the held-out rows, for the rest of their training. `true` looks "
        f"at {', '.join(f'{rung:g}' for rung in RUNGS[:-1])} and {RUNGS[-1]:g} of the steps, a list at the shares in it. An arm is one "
        "configuration at one learning rate. What is stopped is reported as that and wins nothing.",
    )
    time_budget_hours: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Hours of work in all. The suite looks for the learning rates of its arms in the first half. Then the arms that may be "
        "the best, or cheaper and as good, train again with as many of `seeds` as the time left allows, and only these runs report. Needs "
        "`learning_rate: auto`. `lorastudy tune` writes such suites.",
    )
    experiments: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)] | None = Field(
        None,
        description="The arms, one entry each. An entry says only what differs from the top of the file.",
    )
    factors: Annotated[dict[str, Any], Field(min_length=1)] | None = Field(
        None,
        description="Instead of `experiments`: settings with a list of values each; every combination is an arm.",
    )

    @field_validator("tuning_seeds", "racing", "metrics", mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("tuning_seeds")
    @classmethod
    def _tuning_seeds_differ(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("a seed appears twice; equal seeds give equal runs")
        return value

    @field_validator("racing")
    @classmethod
    def _rungs_rise(cls, value: object) -> object:
        if isinstance(value, tuple):
            check_rungs(value)
        return value

    @field_validator("margin", "time_budget_hours", mode="before")
    @classmethod
    def _whole_numbers_are_numbers(cls, value: object) -> object:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("margin")
    @classmethod
    def _margin_is_known(cls, value: float | str | None) -> float | str | None:
        if value is not None:
            Margin.parse(value)
        return value

    @field_validator("suite_name")
    @classmethod
    def _name_is_a_folder_name(cls, value: str | None) -> str | None:
        cause = None if value is None else name_problem(value)
        if cause is not None:
            raise ValueError(cause)
        return value


def name_problem(name: str) -> str | None:
    """Why a name cannot be a folder's name on every system; None if it can."""
    shown = repr(name if len(name) <= MAX_NAME_LENGTH else name[:30] + "...")
    if not _NAME.fullmatch(name) or name.endswith("."):
        rule = "letters, digits, `.`, `_` and `-`, not beginning or ending with a dot"
        return f"{shown} cannot be a folder's name; use {rule}"
    if _RESERVED.fullmatch(name):
        return f"{shown} is the name of a device on Windows; use another"
    if len(name) > MAX_NAME_LENGTH:
        return f"{shown} has {len(name)} characters; a name has at most {MAX_NAME_LENGTH}"
    return None


def expand(
    suite: Suite,
    *,
    fingerprint_dataset: Fingerprint,
    fingerprint_base: Fingerprint,
    waiting: Sequence[Arm] = (),
) -> tuple[Experiment, ...]:
    """The suite's experiments, in the order of its arms and their seeds.

    Every arm must have its learning rate (see `rate_search`). An experiment has the name of its arm, plus `_seed<seed>`
    if the arm has several seeds. Each path is fingerprinted once. `prompt_format: auto` becomes `chat` if the base
    model has a chat template. `waiting` are arms of the same suite whose experiments do not exist yet. They count when
    names are made from the varied settings, and a reference may name them.

    Raises:
        SuiteFileError: two arms share a name, two experiments are the same, a name cannot be a folder's, or no
            arm has the name of the reference.
        StudyError: the experiment type cannot be loaded, or returns something that is not a setting.
    """
    assert not any(arm.seeks_rate for arm in suite.arms)
    named = _named_arms(suite, [*suite.arms, *waiting])
    arms = named[: len(suite.arms)]
    sources_of = sources_reader(fingerprint_dataset, fingerprint_base)
    by_arm = [(arm, _experiments(suite, arm, sources=sources_of(arm.settings))) for arm in arms]
    problems = Problems()
    _note_bad_names(suite, arms, problems=problems)
    _note_twins(suite, by_arm, problems=problems)
    _note_unknown_reference(suite, named, problems=problems)
    problems.raise_if_any()
    return tuple(experiment for _, experiments in by_arm for experiment in experiments)


@dataclass(frozen=True, kw_only=True)
class _NamedArm:
    """An arm with the name and settings that its experiment type gives it."""

    name: str
    settings: Settings
    seeds: tuple[int, ...]
    line: int | None

    def name_with(self, seed: int) -> str:
        """The name of the experiment with this seed."""
        return self.name if len(self.seeds) == 1 else f"{self.name}_seed{seed}"


def _named_arms(suite: Suite, arms: Sequence[Arm]) -> list[_NamedArm]:
    kind = resolve_type(suite.experiment_type)
    varied = varied_keys([arm.settings for arm in arms])
    named = [_named(arm, kind=kind, varied=varied) for arm in arms]
    groups: dict[str, list[_NamedArm]] = {}
    for arm in named:
        groups.setdefault(arm.name, []).append(arm)
    differing = {name: varied_keys([arm.settings for arm in group]) for name, group in groups.items()}
    return [
        _NamedArm(
            name="_".join([arm.name, *names_of_varied(arm.settings, differing[arm.name])]),
            settings=arm.settings,
            seeds=arm.seeds,
            line=arm.line,
        )
        for arm in named
    ]


def _named(arm: Arm, *, kind: type[BaseExperiment], varied: tuple[str, ...]) -> _NamedArm:
    """The arm under its given name, or under the name that its type makes. Several arms may still share a name.

    The catch is broad because the class may be the user's own code.

    Raises:
        StudyError: the class raised an error, or returns something that is not a setting.
    """
    try:
        experiment = kind(ExperimentConfig.of(arm.settings, varied=varied))
        settings = settings_of(experiment)
        name = arm.name or experiment.get_experiment_name()
    except StudyError:
        raise
    except Exception as error:
        raise StudyError(f"{kind.__name__} fails: {type(error).__name__}: {error}") from error
    if not isinstance(name, str):
        raise StudyError(f"{kind.__name__}.get_experiment_name returned {name!r}; a name is text")
    return _NamedArm(name=name, settings=_with_layout(settings), seeds=arm.seeds, line=arm.line)


def _with_layout(settings: Settings) -> Settings:
    """The settings, with `prompt_format: auto` replaced by `chat` if the base model has a chat template."""
    if settings.prompt_format == "auto" and has_chat_template(settings.base_model):
        return settings.model_copy(update={"prompt_format": "chat"})
    return settings


def _experiments(suite: Suite, arm: _NamedArm, *, sources: Sources) -> list[Experiment]:
    return [
        Experiment(
            name=arm.name_with(seed),
            arm=arm.name,
            experiment_type=suite.experiment_type,
            seed=seed,
            settings=arm.settings,
            sources=sources,
        )
        for seed in arm.seeds
    ]


def sources_reader(
    fingerprint_dataset: Fingerprint, fingerprint_base: Fingerprint
) -> Callable[[Settings], Sources]:
    """A function that fingerprints the files and the model of given settings, each of them once."""
    dataset = functools.cache(fingerprint_dataset)
    base = functools.cache(fingerprint_base)

    def sources_of(settings: Settings) -> Sources:
        return Sources(
            base_model=base(settings.base_model),
            dataset=dataset(settings.dataset_path),
            eval_dataset=of_optional(settings.eval_dataset_path),
            test_dataset=of_optional(settings.test_dataset_path),
            forgetting_dataset=of_optional(settings.forgetting_dataset_path),
            data_version=DATA_VERSION,
        )

    def of_optional(path: str | None) -> str | None:
        return None if path is None else dataset(path)

    return sources_of


def _note_bad_names(suite: Suite, arms: Sequence[_NamedArm], *, problems: Problems) -> None:
    first: dict[str, _NamedArm] = {}
    for arm in arms:
        for seed in arm.seeds:
            name = arm.name_with(seed)
            cause = name_problem(name)
            if cause is not None:
                problems.add(_place(suite, arm.line), cause=f"{cause}; give the entry a `name`")
            other = first.setdefault(name.casefold(), arm)
            if other is not arm:
                where = f" of line {other.line}" if other.line and other.line != arm.line else ""
                cause = f"the name {name!r} is also that of another arm{where} (case does not count)"
                problems.add(_place(suite, arm.line), cause=f"{cause}; give the entry a `name`")


def _note_twins(
    suite: Suite, by_arm: Sequence[tuple[_NamedArm, Sequence[Experiment]]], *, problems: Problems
) -> None:
    """Note two experiments with the same id: they would share one result, and the store cannot hold both."""
    first: dict[str, Experiment] = {}
    for arm, experiments in by_arm:
        for experiment in experiments:
            other = first.setdefault(experiment.id, experiment)
            if other is not experiment:
                cause = f"{experiment.name!r} is the same experiment as {other.name!r}"
                cause = f"{cause}: same settings, seed and data; remove one"
                problems.add(_place(suite, arm.line), cause=cause)


def _note_unknown_reference(suite: Suite, arms: Sequence[_NamedArm], *, problems: Problems) -> None:
    rates = {arm.name: arm.settings.learning_rate for arm in arms}
    if suite.reference is None or any(
        is_reference(suite.reference, arm=name, learning_rate=rate) for name, rate in rates.items()
    ):
        return
    known = dict.fromkeys(configuration_name(name, rate) for name, rate in rates.items())
    near = did_you_mean(suite.reference, known) or f"; there are {', '.join(known)}"
    problems.add(_place(suite, None), path="reference", cause=f"no arm is called {suite.reference!r}{near}")


def _place(suite: Suite, line: int | None) -> Place:
    source = suite.name if suite.path is None else str(suite.path)
    return Place(source=source, line=line, column=None if line is None else 1)
