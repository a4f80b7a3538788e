"""What the linter judges: a study, planned or measured, with what is known of each arm.

A suite that was not run yet is a study too: its experiments are results that are pending, as the store itself
gives them out. So every rule is written once, on the values that the report has. What a rule needs beyond the
settings (sizes, token counts, leaks) is a fact that is computed before a run and measured by it; a fact that
nobody knows is None, and a rule that would need it says nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from lorastudy.protocol.records import RowsRead
from lorastudy.stats.reference import missing_reference, planned_reference, reference_arm
from lorastudy.stats.study import Study, StudyArm, differing_settings, split_studies
from lorastudy.stats.summary import LOSS, METRICS, Metric
from lorastudy.stats.trivial import AgainstTrivial
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.question import Question
from lorastudy.suite.settings import Settings
from lorastudy.suite.targets import in_words


@dataclass(frozen=True, kw_only=True)
class ArmFacts:
    """What is known of one arm besides its settings."""

    num_trainable_parameters: int | None = None
    num_completion_tokens: int | None = None
    """Tokens that the loss covers in the distinct training rows that the arm gets to see."""
    num_train_rows: int | None = None
    """Of the training set, whether the steps reach them or not."""
    num_test_rows: int | None = None
    """Of the file: a long plain text counts once, as in verdicts, though it becomes several rows."""
    num_leaked_rows: int | None = None
    """Held-out rows whose content is also trained on."""
    num_known_prompts: int | None = None
    """Held-out rows whose prompt is also trained on, whatever the answer."""
    num_near_copies: int | None = None
    """Held-out rows whose prompt nearly repeats one that is trained on, of `num_compared_rows`."""
    num_compared_rows: int | None = None
    split_by: str | None = None
    """`prompt` or `row`, by which the rows are held out; None where they have a file of their own."""
    tokenizer: str | None = None
    """What names the base model's tokenizer by content; unknown where only the base model's name is."""
    rows: tuple[RowsRead, ...] = ()
    """What became of the rows of each split; before a run only where a worker could read them."""
    vocab_size: int | None = None
    """Of the base model; known before a run alone."""
    modules_digest: str | None = None
    """Equal for arms that adapt the same layers of the model."""
    modules: str | None = None
    """How many layers of which role those are, in words."""
    published_rates: tuple[float, float] | None = None
    """The least and the greatest learning rate that the published rule gives for the model; known before a run alone."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A study with the facts about its arms, by name."""

    study: Study
    facts: Mapping[str, ArmFacts] = field(default_factory=dict)
    metric: Metric = LOSS
    """By which the best learning rate is told."""
    margin: float | None = None
    """In the metric's unit; None where it is a share of the gain, which cannot be too large."""
    allowed: float | None = None
    """What the margin came to, a share of the gain too."""
    trivial: tuple[AgainstTrivial, ...] = ()
    """The compared arms against guessing, on the metric; known after a run alone."""
    named_reference: str | None = None
    """The reference that the suite states; by default, and where no run of it completed, the design names it."""

    @property
    def arms(self) -> tuple[StudyArm, ...]:
        """The study's arms, without those at a rate that was tried and not chosen."""
        return self.study.reported_arms

    @cached_property
    def reference(self) -> StudyArm | None:
        """The arm that the others will be, or are, compared with."""
        if not self.study.completed:
            return planned_reference(self.study, named=self.named_reference)
        found = reference_arm(self.study, named=self.named_reference, metric=self.metric)
        return found or missing_reference(self.study)

    def facts_of(self, arm: StudyArm) -> ArmFacts:
        """What is known of the arm; nothing, where nothing was told."""
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
    """The case of a suite before its run: its experiments as the store would list them, all pending."""
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
        metric=next(metric for metric in METRICS if metric.name == question.primary_metric),
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
    """The case of a study as the store has it: facts are what its completed runs recorded."""
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
    """What the arms are called."""
    return tuple(arm.name for arm in arms)


def seeds_of(arm: StudyArm, study: Study) -> frozenset[int]:
    """The seeds that count: the completed ones once anything of the study has completed, before that the planned."""
    results = [run for run in study.reporting_runs(arm) if run.status == "completed" or not study.completed]
    return frozenset(result.seed for result in results)


#: What is counted of scored rows under the names that facts have.
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
    """The facts with the counts of the rows that are left once they are tokens; what was not read stays as it was."""
    train = next((read.summary for read in rows if read.summary.split == "train"), None)
    reporting = reporting_rows(rows)
    if train is not None:
        seen = tokens_seen(
            settings, num_rows=train.num_rows, num_completion_tokens=train.num_completion_tokens
        )
        all_rows = train.num_rows + (train.num_unread_rows or 0)
        facts = replace(facts, num_train_rows=all_rows, num_completion_tokens=seen)
    if reporting is not None:
        test = reporting.summary
        copies = {name: getattr(test, name) for name in _COPIES}
        known = {name: value for name, value in copies.items() if value is not None}
        facts = replace(facts, num_test_rows=test.num_usable_texts, **known)
    return replace(facts, rows=tuple(rows))


def reporting_rows(rows: Sequence[RowsRead]) -> RowsRead | None:
    """Of a suite's splits as they were read, the one that reports: the test rows, or the held-out rows where there are none."""
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
