"""One suite's results: its arms, which of its runs may be compared, and what was set late. Results of two suites are never pooled: they answer two questions.

An arm is a name *and* its settings. A suite that was edited and run again under its old name leaves results of both versions
in the store; they become two arms and are never averaged. If the data or the base model changed under the same name and
settings, only results on the latest version count, and a note says so.

A study with test rows reports on them, and chooses (a learning rate, a checkpoint) on the held-out rows, which then report
nothing. Without test rows the held-out rows do both, and a choice among many candidates makes the chosen one look slightly
better than it is.

Runs of one environment, on one base model, scored on the same rows may be compared. A library upgrade alone changes results
(38 re-runs of a public benchmark moved by -1.65 points on average), so a difference across environments is not a difference
between arms.

A metric, margin or reference that is set after results can be chosen to suit them, so the report names the parts of a suite's
question that were set when results already existed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from lorastudy.protocol.records import Environment
from lorastudy.store.views import ExperimentResult, StatedQuestion, SuiteSummary
from lorastudy.suite.experiment import canonical_json, without_later
from lorastudy.suite.labels import PRECISIONS, arm_labels, in_order_of_values, with_seed, without_rate
from lorastudy.suite.methods import FULL, WITHOUT_KEY, without_plain
from lorastudy.suite.question import Question, configuration_name, is_reference
from lorastudy.suite.settings import SELECTION_KEYS, Settings, keys_without_effect

_MODULE_KEYS = frozenset({"target_modules", "layers_to_transform", "exclude_modules"})
_PRECISION_KEYS = frozenset({"quantization", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant"})
#: The split that choices are made on, as in `Score.split`.
CHOOSING_SPLIT: Literal["eval"] = "eval"
#: Every completed run has this metric, so its presence shows whether a run was scored on the test rows.
_ALWAYS_MEASURED = "loss"
#: What each experiment type varies on purpose.
STUDIED_KEYS: Mapping[str, frozenset[str]] = {
    "rank_ablation": frozenset({"lora_rank", "lora_alpha"}),
    "module_ablation": _MODULE_KEYS,
    "parameter_matched_modules": _MODULE_KEYS | {"lora_rank", "lora_alpha"},
    "method_comparison": frozenset(
        {"method", "peft_config", "lora_rank", "lora_alpha", "use_rslora", "lora_dropout", "target_modules"}
    ),
    # Nobody stated what another tool compared, so every setting of the adapter may be it. Each arm stands at its best rate.
    "imported": frozenset({"lora_rank", "lora_alpha", "use_rslora", "lora_dropout", "base_model"})
    | _MODULE_KEYS
    | _PRECISION_KEYS,
    "quantization_study": _PRECISION_KEYS,
}
#: Settings in which two arms of one configuration may differ.
_OUTSIDE_A_CONFIGURATION = frozenset({"learning_rate", "max_arms_per_pack"})

#: Besides the file, these decide which rows are held out and how much of each is scored.
_SCORING_KEYS = ("max_eval_samples", "max_seq_length", "prompt_format")
#: These too if the rows are held out of the training file, which `max_train_samples` cuts first.
_SPLIT_KEYS = ("eval_fraction", "max_train_samples")

#: The parts of a question that decide what a verdict says.
DECIDING = ("primary_metric", "margin", "reference")


@dataclass(frozen=True, kw_only=True)
class Invalidation:
    """Something that makes verdicts about an arm invalid. `code` is that of the linter's finding, `why` is one clause."""

    code: str
    why: str


@dataclass(frozen=True, kw_only=True)
class StudyArm:
    """One configuration with its results, one for each seed, ordered by seed."""

    name: str
    settings: Mapping[str, Any]
    results: tuple[ExperimentResult, ...]
    name_in_suite: str | None = None
    """In a labelled study (`Study.labelled`), where `name` is the label."""

    @property
    def given_name(self) -> str:
        """The name in the suite: that of its folders, and the one by which a suite names its reference."""
        return self.name if self.name_in_suite is None else self.name_in_suite

    @property
    def is_full(self) -> bool:
        """Whether the arm is full fine-tuning, which has no adapter."""
        return bool(self.settings.get("method") == FULL)

    @property
    def learning_rate(self) -> float:
        """The arm's peak learning rate; 0 if an imported result has none."""
        return float(self.settings.get("learning_rate") or 0.0)

    @property
    def configuration_name(self) -> str:
        """The name without the learning rate."""
        return without_rate(configuration_name(self.name, self.learning_rate), self.learning_rate)

    def is_named(self, reference: str) -> bool:
        """Whether a suite that names `reference` means this arm: by its name there, with or without the learning rate."""
        return is_reference(reference, arm=self.given_name, learning_rate=self.learning_rate)

    @cached_property
    def completed(self) -> tuple[ExperimentResult, ...]:
        """The results that count."""
        return tuple(result for result in self.results if result.status == "completed")

    @property
    def was_pruned(self) -> bool:
        """Whether racing stopped it. Such an arm has no final score and did not fail."""
        return any(result.was_pruned for result in self.results)

    @cached_property
    def typed_settings(self) -> Settings:
        """The settings as a typed value, without what this version does not know: keys, and methods of other tools."""
        known = {key: value for key, value in self.settings.items() if key in Settings.model_fields}
        if known.get("method") not in WITHOUT_KEY:
            known.pop("method", None)
        return Settings.model_validate_json(canonical_json(known))

    @cached_property
    def configuration(self) -> str:
        """The settings without learning rate and pack layout, as text: equal for arms that differ in nothing else."""
        rest = {k: v for k, v in self.settings.items() if v is not None and k not in _OUTSIDE_A_CONFIGURATION}
        return canonical_json(rest)


@dataclass(frozen=True, kw_only=True)
class Study:
    """One suite of one experiment type. Arms are in reading order: by rank, by precision, or as in the suite."""

    suite_name: str
    experiment_type: str
    arms: tuple[StudyArm, ...]
    notes: tuple[str, ...] = ()
    """What the reader must know about how results became arms."""
    tuning_seeds: frozenset[int] = frozenset()
    """Seeds of the runs that chose learning rates, as the suite's question states them. These runs report nothing."""
    suite_order: tuple[str, ...] = ()
    """The names of the arms as the suite lists them, if they are read in another order."""
    has_finals: bool = False
    """Whether the suite has a time budget and has decided its finals: an arm without a reporting run then takes no part in them."""

    @cached_property
    def labels(self) -> Mapping[str, str]:
        """What each arm is called for a reader, by its name."""
        return arm_labels(
            {arm.name: arm.typed_settings for arm in self.arms},
            tried={arm.name for arm in self.arms} - {arm.name for arm in self.reported_arms},
            is_searched=bool(self.tuning_seeds),
        )

    def labelled(self) -> "Study":
        """The same study for a reader: every arm is called by its label, and arms come in the order of their values."""
        labels = self.labels
        by_name = {arm.name: _labelled(arm, labels[arm.name]) for arm in self.arms}
        order = in_order_of_values({arm.name: arm.typed_settings for arm in self.arms})
        notes = [_with_labels(note, labels) for note in self.notes]
        return replace(
            self,
            arms=tuple(by_name[name] for name in order),
            notes=tuple(notes),
            suite_order=tuple(labels[arm.name] for arm in self.arms),
        )

    def called(self, reference: str) -> str:
        """What a reader calls the arm or the configuration that a suite names; the name itself if there is none."""
        for arm in self.arms:
            if arm.is_named(reference):
                return arm.name if reference == arm.given_name else arm.configuration_name
        return reference

    @cached_property
    def results(self) -> tuple[ExperimentResult, ...]:
        """Every result, whatever its status."""
        return tuple(result for arm in self.arms for result in arm.results)

    @cached_property
    def completed(self) -> tuple[ExperimentResult, ...]:
        """Every completed result."""
        return tuple(result for arm in self.arms for result in arm.completed)

    @property
    def pruned(self) -> tuple[ExperimentResult, ...]:
        """Every result that racing stopped."""
        return tuple(result for arm in self.arms for result in arm.results if result.was_pruned)

    @cached_property
    def reported_arms(self) -> tuple[StudyArm, ...]:
        """The arms that the report shows: without those at a learning rate that was tried and not chosen."""
        return tuple(arm for arm in self.arms if self.reporting_runs(arm))

    @cached_property
    def versions(self) -> Mapping[tuple[str, str], frozenset[int]]:
        """All versions of each metric that completed runs recorded, by (split, metric) as in `ExperimentResult.scores`."""
        found: dict[tuple[str, str], set[int]] = {}
        for result in self.completed:
            for key, score in result.scores.items():
                found.setdefault(key, set()).add(score.version)
        return {key: frozenset(versions) for key, versions in found.items()}

    @cached_property
    def scored_throughout(self) -> frozenset[tuple[str, str]]:
        """The (split, metric) pairs that every completed run has; empty if nothing completed."""
        scored = [frozenset(result.scores) for result in self.completed]
        return frozenset.intersection(*scored) if scored else frozenset()

    def reporting_runs(self, arm: StudyArm) -> tuple[ExperimentResult, ...]:
        """The arm's results, whatever their status, without those that chose its learning rate."""
        return tuple(result for result in arm.results if result.seed not in self.tuning_seeds)

    def is_left_out(self, arms: Iterable[StudyArm]) -> bool:
        """Whether these arms of one configuration take no part in the finals."""
        return self.has_finals and not any(self.reporting_runs(arm) for arm in arms)

    def choosing_runs(self, arm: StudyArm) -> tuple[ExperimentResult, ...]:
        """The arm's results, whatever their status, that choose its learning rate: its tuning runs if it has any, else all."""
        tuning = tuple(result for result in arm.results if result.seed in self.tuning_seeds)
        return tuning or arm.results

    def arm(self, name: str) -> StudyArm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)


def split_studies(results: Iterable[ExperimentResult]) -> tuple[Study, ...]:
    """One study for each suite and experiment type, in order of first appearance."""
    groups: dict[tuple[str, str], list[ExperimentResult]] = {}
    for result in results:
        groups.setdefault((result.suite_name, result.experiment_type), []).append(result)
    return tuple(_study(name, kind, results=group) for (name, kind), group in groups.items())


def labels_by_experiment(
    results: Sequence[ExperimentResult], suites: Iterable[SuiteSummary]
) -> dict[str, str]:
    """The label of each result's arm, by experiment id; its name for a result that does not count."""
    tuning = {each.suite_name: each.questions[-1].question.tuning_seeds for each in suites if each.questions}
    labels = {result.experiment_id: result.arm for result in results}
    for study in split_studies(results):
        own = replace(study, tuning_seeds=frozenset(tuning.get(study.suite_name, ())))
        labels |= {run.experiment_id: own.labels[arm.name] for arm in own.arms for run in arm.results}
    return labels


def differing_settings(arms: Sequence[StudyArm]) -> tuple[str, ...]:
    """Keys in which at least two arms differ, in the order of the settings.

    Leaves out the layout of packs, and keys for scores on the way if these decide nothing in any arm.
    """
    idle = SELECTION_KEYS.intersection(*(keys_without_effect(arm.settings) for arm in arms))
    left_out = idle | {"max_arms_per_pack"}
    keys = dict.fromkeys(key for arm in arms for key in arm.settings if key not in left_out)
    return tuple(key for key in keys if len({canonical_json(arm.settings.get(key)) for arm in arms}) > 1)


def have_one_engine(arms: Iterable[StudyArm]) -> bool:
    """Whether one engine trained all completed runs of these arms. Otherwise their memory and times are not comparable."""
    return len({run.engine for arm in arms for run in arm.completed}) <= 1


def confounds(study: Study) -> tuple[str, ...]:
    """Keys in which the arms differ beyond what the experiment type studies; empty for a custom type.

    A searched learning rate is each arm's best, so it does not count as a factor.
    """
    studied = STUDIED_KEYS.get(study.experiment_type)
    if studied is None:
        return ()
    tuned = {"learning_rate"} if study.tuning_seeds else set()
    return tuple(key for key in differing_settings(study.arms) if key not in studied | tuned)


def reporting_split(study: Study) -> Literal["test", "eval"]:
    """`test` if every completed run was scored on test rows, else `eval`: one study reports on one split."""
    return "test" if ("test", _ALWAYS_MEASURED) in study.scored_throughout else "eval"


def stored_split(split: str, study: Study, *, choosing: bool = False) -> str:
    """The stored split behind what a `Metric` calls `eval` or `eval_before`; any other split is unchanged."""
    if choosing or split.removesuffix("_before") != CHOOSING_SPLIT:
        return split
    return reporting_split(study) + split.removeprefix(CHOOSING_SPLIT)


def _study(suite_name: str, experiment_type: str, *, results: Sequence[ExperimentResult]) -> Study:
    groups: dict[tuple[str, str], list[ExperimentResult]] = {}
    arms, notes = [], []
    newest = max((_data_version(result) for result in results), default=0)
    current_data = [result for result in results if _data_version(result) == newest]
    if len(current_data) < len(results):
        notes.append(
            f"{len(results) - len(current_data)} result(s) of an earlier version of lorastudy, which made other tokens of "
            "the same rows, are not counted; run the suite again to have them replaced"
        )
    for result in current_data:
        without_effect = keys_without_effect(result.settings)
        # Results from before a key existed are of one arm with later ones that have it at its old value.
        stated = without_later(without_plain(result.settings))
        acting = {key: value for key, value in stated.items() if key not in without_effect}
        groups.setdefault((result.arm, canonical_json(acting)), []).append(result)
    uses = Counter(name for name, _ in groups)
    seen: Counter[str] = Counter()
    for (name, _), group in groups.items():
        seen[name] += 1
        unique = name if uses[name] == 1 else f"{name} #{seen[name]}"
        current = _on_latest_sources(group)
        latest = _latest_per_seed(current)
        if len(current) < len(group):
            notes.append(
                f"{unique}: {len(group) - len(current)} result(s) on another version of the data or the base model "
                "are not counted"
            )
        if len(latest) < len(current):
            notes.append(
                f"{unique}: {len(current) - len(latest)} earlier result(s) of the same settings and seed are not counted"
            )
        arms.append(
            StudyArm(name=unique, settings=without_later(without_plain(latest[-1].settings)), results=latest)
        )
    notes += [
        f"the name {name} stands for {count} different configurations, numbered #1 to #{count}; they are not pooled"
        for name, count in uses.items()
        if count > 1
    ]
    return Study(
        suite_name=suite_name,
        experiment_type=experiment_type,
        arms=_in_reading_order(arms, experiment_type),
        notes=tuple(notes),
    )


def _labelled(arm: StudyArm, label: str) -> StudyArm:
    results = (replace(run, arm=label, name=with_seed(label, run.seed)) for run in arm.results)
    return replace(arm, name=label, name_in_suite=arm.given_name, results=tuple(results))


def _with_labels(note: str, labels: Mapping[str, str]) -> str:
    """A note with the label of the arm that it begins with."""
    name, colon, rest = note.partition(": ")
    return f"{labels.get(name, name)}{colon}{rest}"


def _on_latest_sources(group: Sequence[ExperimentResult]) -> list[ExperimentResult]:
    """The results on the data and base model of the latest one: seeds on two versions are not averaged."""
    latest = max(group, key=_completed_then_latest)
    return [result for result in group if _data_and_base(result) == _data_and_base(latest)]


def _data_version(result: ExperimentResult) -> int:
    return int(result.sources.get("data_version") or 1)


def _data_and_base(result: ExperimentResult) -> dict[str, Any]:
    """The sources without the environment, which only imported results keep there."""
    return {key: value for key, value in result.sources.items() if key != "environment"}


def _latest_per_seed(group: Sequence[ExperimentResult]) -> tuple[ExperimentResult, ...]:
    """One result for each seed: a completed one if there is one, and of several the one that began last."""
    by_seed = {result.seed: result for result in sorted(group, key=_completed_then_latest)}
    return tuple(by_seed[seed] for seed in sorted(by_seed))


def _completed_then_latest(result: ExperimentResult) -> tuple[bool, str]:
    return (result.status == "completed", result.started_at or "")


def _in_reading_order(arms: Sequence[StudyArm], experiment_type: str) -> tuple[StudyArm, ...]:
    if experiment_type == "rank_ablation":
        return tuple(sorted(arms, key=lambda arm: int(arm.settings["lora_rank"])))
    if experiment_type == "quantization_study":
        return tuple(sorted(arms, key=lambda arm: PRECISIONS.index(arm.settings["quantization"])))
    return tuple(arms)


@dataclass(frozen=True, kw_only=True)
class EnvironmentGroup:
    """One environment, and the names of the completed experiments that ran in it."""

    environment: Environment
    experiments: tuple[str, ...]


def comparable(one: Environment | None, other: Environment | None) -> bool:
    """Whether a difference between two runs can be due to their arms.

    Library versions and the kind of device must be equal. The Python version, the number of threads and deterministic
    algorithms change only the last bits, and which of several equal GPUs ran does not matter. Two unknown environments count as equal; a known and an
    unknown one do not.
    """
    return _key(one) == _key(other)


def same_environment(one: ExperimentResult, other: ExperimentResult) -> bool:
    """`comparable` for two results. An imported result has its environment as one text, as its tool wrote it."""
    texts = (one.sources.get("environment"), other.sources.get("environment"))
    return comparable(one.environment, other.environment) and texts[0] == texts[1]


def obstacle(one: ExperimentResult, other: ExperimentResult) -> str | None:
    """Why two runs cannot be compared; None if they can."""
    if not same_environment(one, other):
        return "environments differ"
    if one.sources.get("base_model") != other.sources.get("base_model"):
        return "different base models"
    if scored_rows(one) != scored_rows(other):
        return "scored on different rows"
    return None


def environment_groups(results: Iterable[ExperimentResult]) -> tuple[EnvironmentGroup, ...]:
    """Each distinct recorded environment with its experiments.

    A run of an older version has no `algorithms`. It was deterministic, as all runs on a CPU are, and counts with the
    deterministic environment that is equal in all else.
    """
    recorded = [(result.environment, result.name) for result in results if result.environment is not None]
    with_algorithms: dict[Environment, Environment] = {}
    for environment, _ in recorded:
        if environment.algorithms == "deterministic":
            with_algorithms.setdefault(replace(environment, algorithms=None), environment)
    groups: dict[Environment, list[str]] = {}
    for environment, name in recorded:
        groups.setdefault(with_algorithms.get(environment, environment), []).append(name)
    return tuple(
        EnvironmentGroup(environment=environment, experiments=tuple(names))
        for environment, names in groups.items()
    )


def give_the_same_bits(results: Iterable[ExperimentResult]) -> bool:
    """Whether a second run on the same machine gives the same bits: true if none used the fastest algorithms."""
    return not any(
        result.environment is not None and result.environment.algorithms == "fastest" for result in results
    )


def _key(environment: Environment | None) -> tuple[str, ...] | None:
    if environment is None:
        return None
    versions = (environment.torch, environment.transformers, environment.peft, environment.bitsandbytes)
    device = environment.device.split(":")[0]
    return (*versions, environment.lorastudy, device, environment.device_name)


def scored_rows(result: ExperimentResult, *, leaving_out: str | None = None) -> tuple[object, ...]:
    """Everything that decides the held-out rows: the fingerprint of their file, and settings (`leaving_out` one of them)."""
    own = result.sources.get("eval_dataset")
    keys = _SCORING_KEYS if own is not None else (*_SPLIT_KEYS, *_SCORING_KEYS)
    source = own if own is not None else result.sources.get("dataset")
    test = (result.sources.get("test_dataset"), result.settings.get("test_fraction"))
    rest = (result.settings.get(key) for key in keys if key != leaving_out)
    return (own is not None, source, *test, *rest)


@dataclass(frozen=True, kw_only=True)
class SetLate:
    """One of `DECIDING` as it was first stated and as it holds now, and when it was set to that.

    `first` is None if the first statement itself came after results.
    """

    key: str
    first: Question | None
    now: Question
    stated_at: str
    num_completed: int


def set_late(statements: Sequence[StatedQuestion]) -> tuple[SetLate, ...]:
    """The parts that hold now and were not stated before there were results. `statements` come oldest first.

    A part that was changed and changed back counts as first stated.
    """
    found = (_late(statements, key) for key in DECIDING) if statements else ()
    return tuple(late for late in found if late is not None)


def _late(statements: Sequence[StatedQuestion], key: str) -> SetLate | None:
    first, now = statements[0], statements[-1].question
    value = getattr(now, key)
    was_there_at_first = getattr(first.question, key) == value
    if was_there_at_first and (not first.num_completed or value == getattr(Question(), key)):
        return None
    set_by = first
    if not was_there_at_first:
        # The statement since which it has its present value.
        others = [
            number for number, statement in enumerate(statements) if getattr(statement.question, key) != value
        ]
        set_by = statements[others[-1] + 1]
        if not set_by.num_completed:
            return None
    return SetLate(
        key=key,
        first=None if was_there_at_first else first.question,
        now=now,
        stated_at=set_by.stated_at,
        num_completed=set_by.num_completed,
    )
