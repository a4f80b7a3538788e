"""The return values of the store: frozen, one per experiment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorastudy.protocol.records import (
    ArmProfile,
    CheckpointProfile,
    DataSummary,
    Environment,
    Incident,
    MemoryPrediction,
    PackProfile,
    TrivialScore,
)
from lorastudy.protocol.scoring import FailedRow
from lorastudy.suite.experiment import tagged_hash
from lorastudy.suite.question import Question


@dataclass(frozen=True, kw_only=True)
class ScoreValue:
    """A metric's value without its items."""

    value: float
    unit: str
    version: int
    num_items: int | None
    """None for an imported score whose number of items was not recorded."""
    step: int | None = None
    """The step after which an adapter on the way was scored; None at the end and before training."""
    train_seconds: float | None = None
    """The experiment's training time up to that step."""


@dataclass(frozen=True, kw_only=True)
class FailedRows:
    """The rows of one score that its metric gave no number for."""

    num_rows: int
    """All rows that the metric was asked for."""
    version: int
    rows: tuple[FailedRow, ...]


@dataclass(frozen=True, kw_only=True)
class ExperimentResult:
    """One experiment in the store: its settings, and the measurements of its current run.

    `scores` is keyed by (split, metric). `status` is that of the current run: pending, running, paused, completed,
    failed or stopped.
    """

    experiment_id: str
    suite_name: str
    name: str
    arm: str
    experiment_type: str
    seed: int
    settings: Mapping[str, Any]
    status: str
    attempt: int | None = None
    engine: str | None = None
    """The engine that trained; before the end of training, the requested one."""
    started_at: str | None = None
    finished_at: str | None = None
    failure_kind: str | None = None
    failure_message: str | None = None
    run_folder: str | None = None
    adapter_path: str | None = None
    num_steps: int | None = None
    num_planned_steps: int | None = None
    """The steps of a whole training. More than `num_steps` if the run stopped early; None in older stores."""
    selected_step: int | None = None
    """The step whose adapter was saved and scored, if the best one is selected; None if it is always the last."""
    train_seconds: float | None = None
    """Share of the pack's training time: that time divided by its number of arms. Up to its stop if it stopped early."""
    scores: Mapping[tuple[str, str], ScoreValue]
    failed_rows: Mapping[tuple[str, str], FailedRows] = field(default_factory=dict)
    """For scores that have some, by (split, metric). If all rows failed, `scores` has no entry."""
    profile: ArmProfile | None = None
    pack_profile: PackProfile | None = None
    prediction: MemoryPrediction | None = None
    """The memory predicted before the run."""
    data: tuple[DataSummary, ...] = ()
    trivial: tuple[TrivialScore, ...] = ()
    """Scores of the trivial predictors on the rows that this experiment is scored on."""
    environment: Environment | None = None
    sources: Mapping[str, Any] = field(default_factory=dict)
    """Fingerprints of the base model and the data sets."""
    pack_id: str | None = None
    traceback: str | None = None
    incidents: tuple[Incident, ...] = ()
    """The incidents of its pack, in order. They include those of the earlier attempts that this one continues."""
    checkpoint_profile: CheckpointProfile | None = None

    @property
    def was_pruned(self) -> bool:
        """Whether racing stopped it because its arm was clearly behind. It is no failure and needs no further run."""
        return self.status == "stopped" and self.failure_kind == "pruned"

    def was_measured(self, split: str, metric: str, *, version: int) -> bool:
        """Whether this version of the metric was measured on the split, even if it gave no number for any row."""
        found = self.scores.get((split, metric)) or self.failed_rows.get((split, metric))
        return found is not None and found.version == version


@dataclass(frozen=True, kw_only=True)
class RunView:
    """One attempt at an experiment, and the run folder of its pack."""

    experiment_id: str
    attempt: int
    status: str
    pack_id: str
    run_folder: str
    started_at: str
    finished_at: str | None = None
    """None while it runs. An attempt that was cut off ends when a later call finds it."""


@dataclass(frozen=True, kw_only=True)
class ImportedScore:
    """A metric as another tool reported it. `num_items` is None if the tool did not record it."""

    metric: str
    value: float
    unit: str
    lower_is_better: bool
    num_items: int | None = None


@dataclass(frozen=True, kw_only=True)
class ImportedResult:
    """One result of another tool: its training, its measurements, and its source.

    `settings` have our names where there is one. `seed` is None if it was not recorded; two such results are never
    paired. The first of `scores` is the primary metric.
    """

    suite_name: str
    arm: str
    seed: int | None
    settings: Mapping[str, Any]
    sources: Mapping[str, str]
    """The base model, the data and the environment, as far as recorded."""
    scores: tuple[ImportedScore, ...]
    costs: Mapping[str, float]
    tool: str
    file: str
    file_sha256: str
    location: str
    """The file, with the line if it holds several results."""
    is_diverged: bool = False
    """Whether the primary metric has no usable value: the word "diverged", NaN, infinity, or nothing."""
    imported_at: str | None = None
    """None before it is stored."""

    @property
    def id(self) -> str:
        """`imp-` and a hash of the content, so the same result from another file has the same id."""
        scores = [vars(score) for score in self.scores]
        body = [
            self.suite_name,
            self.tool,
            self.arm,
            self.seed,
            self.settings,
            self.sources,
            scores,
            self.costs,
            *([True] if self.is_diverged else []),
        ]
        return tagged_hash("imp", body)


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One stored optimizer step of one experiment."""

    step: int
    loss: float | None
    learning_rate: float
    grad_norm: float | None


@dataclass(frozen=True, kw_only=True)
class StatedQuestion:
    """A question of a suite, and how many of its experiments were completed when it was stated."""

    question: Question
    stated_at: str
    num_completed: int


@dataclass(frozen=True, kw_only=True)
class StoredDecision:
    """A decision of a study. `key` is a hash of its subject, `content` plain JSON values."""

    key: str
    content: Mapping[str, Any]
    decided_at: str | None = None
    """None before it is stored."""


@dataclass(frozen=True, kw_only=True)
class SuiteSummary:
    """A suite as registered. Its experiments may also belong to other suites."""

    suite_name: str
    description: str
    created_at: str
    num_experiments: int
    questions: tuple[StatedQuestion, ...] = ()
    """All its questions, the oldest first. More than one means that the question was changed."""


@dataclass(frozen=True, kw_only=True)
class DamagedRow:
    """A row that does not match its hash. `key` is its primary key, as read.

    If damage keeps a table from being read to its end, `key` is empty.
    """

    table: str
    key: Mapping[str, Any]
    reason: str

    def __str__(self) -> str:
        where = ", ".join(f"{name} {value!r}" for name, value in self.key.items())
        return f"table {self.table}{f' ({where})' if where else ''}: {self.reason}"
