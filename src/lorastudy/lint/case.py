"""What the linter checks, a study with the known facts about each arm, and what it finds: a rule and its breach.

A suite that has not run is a study too: its experiments are pending results, in the form in which the store returns them. So
every rule is written once, for the values that the report has. What a rule needs beyond the settings (sizes, token counts,
leaks) is a fact: computed before a run and measured by it. An unknown fact is None, and a rule that needs it reports nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from lorastudy.protocol.records import DataSummary, RowsRead
from lorastudy.stats.reference import missing_reference, planned_reference, reference_arm
from lorastudy.stats.study import Study, StudyArm, differing_settings, split_studies
from lorastudy.stats.summary import LOSS, Metric, primary_metric_of
from lorastudy.stats.trivial import AgainstTrivial
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.question import Question
from lorastudy.suite.settings import Settings
from lorastudy.suite.targets import in_words

Severity = Literal["note", "warning", "invalidates"]
#: In the order in which findings are listed.
SEVERITIES: tuple[Severity, ...] = ("invalidates", "warning", "note")


@dataclass(frozen=True, kw_only=True)
class ArmFacts:
    """What is known about one arm besides its settings."""

    num_trainable_parameters: int | None = None
    num_completion_tokens: int | None = None
    """Tokens that the loss covers in the distinct training rows that the arm sees."""
    num_train_rows: int | None = None
    """Rows of the training set, whether or not the steps reach them."""
    num_test_rows: int | None = None
    """Rows of the file. A long plain text counts once, as in verdicts, though it becomes several rows."""
    num_leaked_rows: int | None = None
    """Held-out rows whose content is also in the training rows."""
    num_known_prompts: int | None = None
    """Held-out rows whose prompt is also in the training rows, whatever the answer."""
    num_near_copies: int | None = None
    """Held-out rows, of `num_compared_rows`, whose prompt nearly repeats one of the training rows."""
    num_compared_rows: int | None = None
    split_by: str | None = None
    """Whether rows are held out by `prompt` or by `row`; None if they have their own file."""
    tokenizer: str | None = None
    """A fingerprint of the base model's tokenizer; None if only the base model's name is known."""
    rows: tuple[RowsRead, ...] = ()
    """How the rows of each split were read; before a run only if a worker could read them."""
    vocab_size: int | None = None
    """Of the base model; known before a run only."""
    modules_digest: str | None = None
    """Equal for arms that adapt the same layers of the model."""
    modules: str | None = None
    """The number of those layers by role, in words."""
    published_rates: tuple[float, float] | None = None
    """The smallest and largest learning rate that the published rule gives for the model; known before a run only."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A study with the facts about its arms, by name."""

    study: Study
    facts: Mapping[str, ArmFacts] = field(default_factory=dict)
    metric: Metric = LOSS
    """The metric that decides which learning rate is best."""
    margin: float | None = None
    """In the metric's unit; None for a share of the gain, which cannot be too large."""
    allowed: float | None = None
    """The margin in the metric's unit, also if it was stated as a share of the gain."""
    trivial: tuple[AgainstTrivial, ...] = ()
    """The compared arms against guessing, on the metric; known after a run only."""
    named_reference: str | None = None
    """The reference that the suite states. Without one, or if no run of it completed, the design names it."""
    added_metrics: tuple[Metric, ...] = ()
    """The metrics that the suite adds to those of every run."""

    @property
    def arms(self) -> tuple[StudyArm, ...]:
        """The study's arms, without those at a learning rate that was tried and not chosen."""
        return self.study.reported_arms

    @cached_property
    def reference(self) -> StudyArm | None:
        """The arm that the others are, or will be, compared with."""
        if not self.study.completed:
            return planned_reference(self.study, named=self.named_reference)
        found = reference_arm(self.study, named=self.named_reference, metric=self.metric)
        return found or missing_reference(self.study)

    def labelled(self) -> "Case":
        """The same case for a reader, with every arm under its label."""
        labels = self.study.labels
        facts = {labels[name]: known for name, known in self.facts.items() if name in labels}
        return replace(self, study=self.study.labelled(), facts=facts)

    def facts_of(self, arm: StudyArm) -> ArmFacts:
        """What is known about the arm; empty facts if nothing is."""
        return self.facts.get(arm.name, ArmFacts())

    def others(self) -> tuple[StudyArm, ...]:
        """All arms but the reference."""
        return tuple(arm for arm in self.arms if arm is not self.reference)

    def apart(self, arm: StudyArm) -> frozenset[str]:
        """Settings in which the arm differs from the reference."""
        assert self.reference is not None
        return frozenset(differing_settings([self.reference, arm]))


def planned_case(
    experiments: Sequence[Experiment],
    *,
    suite_name: str,
    facts: Mapping[str, ArmFacts] | None = None,
    question: Question | None = None,
) -> Case:
    """The case of a suite before its run: its experiments as pending results."""
    question = question or Question()
    results = [
        ExperimentResult(
            experiment_id=experiment.id,
            suite_name=suite_name,
            name=experiment.name,
            arm=experiment.arm,
            experiment_type=experiment.experiment_type,
            seed=experiment.seed,
            settings=experiment.settings.model_dump(mode="json"),
            status="pending",
            scores={},
            sources=vars(experiment.sources),
        )
        for experiment in experiments
    ]
    (study,) = split_studies(results)
    return Case(
        study=replace(study, tuning_seeds=frozenset(question.tuning_seeds)),
        facts=facts or {},
        metric=primary_metric_of(question),
        margin=None if question.margin is None or question.margin.is_share else question.margin.amount,
        named_reference=question.reference,
    )


def measured_case(
    study: Study,
    *,
    metric: Metric = LOSS,
    margin: float | None = None,
    allowed: float | None = None,
    reference: str | None = None,
    trivial: tuple[AgainstTrivial, ...] = (),
) -> Case:
    """The case of a study from the store: its facts are what the completed runs recorded."""
    return Case(
        study=study,
        facts={arm.name: _measured(arm) for arm in study.arms},
        metric=metric,
        margin=margin,
        allowed=allowed,
        trivial=trivial,
        named_reference=reference,
    )


def names(arms: Sequence[StudyArm]) -> tuple[str, ...]:
    """The names of the arms."""
    return tuple(arm.name for arm in arms)


def seeds_of(arm: StudyArm, study: Study) -> frozenset[int]:
    """The seeds that count: the completed ones if any run of the study completed, else the planned ones."""
    results = [run for run in study.reporting_runs(arm) if run.status == "completed" or not study.completed]
    return frozenset(result.seed for result in results)


#: Counts of scored rows that have the same name in a data summary and in the facts.
_COPIES = ("num_leaked_rows", "num_known_prompts", "num_near_copies", "num_compared_rows", "split_by")


def _measured(arm: StudyArm) -> ArmFacts:
    results = arm.completed
    profile = next((result.profile for result in results if result.profile is not None), None)
    data = {summary.split: summary for result in results for summary in result.data}
    return after_reading(
        ArmFacts(
            num_trainable_parameters=None if profile is None else profile.num_trainable_parameters,
            modules_digest=None if profile is None else profile.modules_digest,
            modules=in_words(profile.modules_by_role) if profile and profile.modules_by_role else None,
        ),
        arm.typed_settings,
        rows=[RowsRead(summary=summary) for summary in data.values()],
    )


def after_reading(facts: ArmFacts, settings: Settings, *, rows: Sequence[RowsRead]) -> ArmFacts:
    """The facts with the counts of the rows after tokenising; facts about rows that were not read stay unchanged."""
    train = next((read.summary for read in rows if read.summary.split == "train"), None)
    reporting = reporting_rows(rows)
    if train is not None:
        seen = tokens_seen(
            settings, num_rows=train.num_rows, num_completion_tokens=train.num_completion_tokens
        )
        facts = replace(facts, num_train_rows=train.num_rows_in_all, num_completion_tokens=seen)
    if reporting is not None:
        test = reporting.summary
        copies = {name: getattr(test, name) for name in _COPIES}
        known = {name: value for name, value in copies.items() if value is not None}
        facts = replace(facts, num_test_rows=test.num_usable_texts, **known)
    return replace(facts, rows=tuple(rows))


def reporting_rows(rows: Sequence[RowsRead]) -> RowsRead | None:
    """The split that reports: the test rows, or the held-out rows if there are no test rows."""
    by_split = {read.summary.split: read for read in rows}
    return by_split.get("test", by_split.get("eval"))


def share_seen(settings: Settings, *, num_rows: int) -> float:
    """The share of the training rows that the steps reach, at most 1."""
    rows_per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    steps = settings.max_steps
    reached = num_rows * (settings.num_train_epochs or 1.0) if steps is None else steps * rows_per_step
    return min(1.0, reached / num_rows)


def tokens_seen(settings: Settings, *, num_rows: int, num_completion_tokens: int) -> int:
    """Completion tokens of the distinct training rows that the steps reach."""
    return round(num_completion_tokens * share_seen(settings, num_rows=num_rows))


@dataclass(frozen=True, kw_only=True)
class Breach:
    """What one rule found in one case."""

    arms: tuple[str, ...]
    """The arms concerned, in the order of the study."""
    found: str
    """What is wrong, in one sentence without the names of the arms."""
    severity: Severity


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule of fair comparison. Codes are stable: a code is never given a second meaning."""

    code: str
    title: str
    why: str
    """One sentence: what goes wrong."""
    source: str
    """Where this was shown."""
    change: str
    """What to change in the suite, or in how its results are read."""
    find: Callable[[Case], Iterator[Breach]]


@dataclass(frozen=True, kw_only=True, repr=False)
class LintFinding:
    """One breach with the words of its rule: everything that a page or a program shows."""

    code: str
    title: str
    severity: Severity
    arms: tuple[str, ...]
    found: str
    why: str
    source: str
    change: str

    def __str__(self) -> str:
        return f"{self.code} {self.severity}: {self.title} ({', '.join(self.arms)}): {self.found}"

    def __repr__(self) -> str:
        return f"<{self.code} {self.severity}: {self.title}>"


#: Of more arms than this, only the first few are named, with their number.
MAX_NAMES = 6
NUM_NAMED_OF_MANY = 3


def arms_in_words(arms: Sequence[str], *, num_arms: int) -> str:
    """`r4, r8`; `all 5 arms`; `12 of 30 arms: r4, r8, ...` where a list would be too long to read."""
    if len(arms) == num_arms:
        return f"all {num_arms} arms"
    shown = [f"“{name}”" if "," in name else name for name in arms] if len(arms) > 1 else list(arms)
    if len(arms) > MAX_NAMES:
        return f"{len(arms)} of {num_arms} arms: {', '.join(shown[:NUM_NAMED_OF_MANY])}, ..."
    return ", ".join(shown)


def sample_in_words(data: DataSummary) -> str:
    """Which sample of the rows was searched for near copies; empty if all were compared with all."""
    compared, compared_with, known = data.num_compared_rows, data.num_compared_with, data.num_known_rows
    if compared is None or compared_with is None or known is None:
        return ""
    num_texts = data.num_usable_texts + data.num_refused_rows
    if compared >= num_texts and compared_with >= known:
        return ""
    things = "rows" if data.num_usable_texts == data.num_rows else "texts"
    these = f"a sample of {compared:,} of {num_texts:,} {things} was compared"
    if compared >= num_texts:
        these = f"all {num_texts:,} {things} were compared"
    others = f"a sample of {compared_with:,} of {known:,}" if compared_with < known else f"all {known:,}"
    whose = "trained on or among the rows that choose" if data.split == "test" else "trained on"
    return f"{these} with {others} that are {whose}"
