"""What the store returns to its readers: frozen values, one per experiment."""

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
from lorastudy.suite.experiment import tagged_hash
from lorastudy.suite.question import Question


@dataclass(frozen=True, kw_only=True)
class ScoreValue:
    """A metric's value without its items."""

    value: float
    unit: str
    version: int
    num_items: int | None
    """None for an imported score without a recorded number of items."""


@dataclass(frozen=True, kw_only=True)
class ExperimentResult:
    """One experiment as it stands in the store: what it is, and what its current run measured.

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
    train_seconds: float | None = None
    """Time the experiment's steps took: the pack's training time divided by its number of arms."""
    scores: Mapping[tuple[str, str], ScoreValue]
    profile: ArmProfile | None = None
    pack_profile: PackProfile | None = None
    prediction: MemoryPrediction | None = None
    """What was predicted before the run."""
    data: tuple[DataSummary, ...] = ()
    trivial: tuple[TrivialScore, ...] = ()
    """What trivial predictors score on the rows that it is scored on."""
    environment: Environment | None = None
    sources: Mapping[str, Any] = field(default_factory=dict)
    """Fingerprints of the base model and the data sets."""
    pack_id: str | None = None
    traceback: str | None = None
    incidents: tuple[Incident, ...] = ()
    """What happened to its pack, in order, earlier attempts included as far as this one goes on from them."""
    checkpoint_profile: CheckpointProfile | None = None

    @property
    def was_pruned(self) -> bool:
        """Whether it was stopped because its arm was clearly behind: no failure, and nothing is left to run."""
        return self.status == "stopped" and self.failure_kind == "pruned"


@dataclass(frozen=True, kw_only=True)
class RunView:
    """One attempt at an experiment, and the folder that it has with the rest of its pack."""

    experiment_id: str
    attempt: int
    status: str
    pack_id: str
    run_folder: str


@dataclass(frozen=True, kw_only=True)
class ImportedScore:
    """A metric as another tool reported it. `num_items` is None where the tool did not record over how many items it is a mean."""

    metric: str
    value: float
    unit: str
    lower_is_better: bool
    num_items: int | None = None


@dataclass(frozen=True, kw_only=True)
class ImportedResult:
    """One result of another tool: what it says it trained, what it measured, and where that was read.

    `settings` go by our names where there is one. `seed` is None where none was recorded; two such results are never
    paired. The first of `scores` is the primary metric.
    """

    suite_name: str
    arm: str
    seed: int | None
    settings: Mapping[str, Any]
    sources: Mapping[str, str]
    """What names the base model, the data and the environment, as far as it was recorded."""
    scores: tuple[ImportedScore, ...]
    costs: Mapping[str, float]
    tool: str
    file: str
    file_sha256: str
    location: str
    """The file, with its line where it holds several results."""
    is_diverged: bool = False
    """Whether the run ended without a usable value of the primary metric: the word, NaN, infinity, or nothing."""
    imported_at: str | None = None
    """None until it is stored."""

    @property
    def id(self) -> str:
        """`imp-` and a hash of what it is: the same result read again, from whatever file, is not another one."""
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
    """One optimizer step of one experiment, as stored."""

    step: int
    loss: float | None
    learning_rate: float
    grad_norm: float | None


@dataclass(frozen=True, kw_only=True)
class StatedQuestion:
    """What a suite asked at a time, and how many of its experiments had been completed by then."""

    question: Question
    stated_at: str
    num_completed: int


@dataclass(frozen=True, kw_only=True)
class StoredDecision:
    """What a study decided on its way. `key` is a hash of what it was about, `content` plain JSON values."""

    key: str
    content: Mapping[str, Any]
    decided_at: str | None = None
    """None of one that is not stored yet."""


@dataclass(frozen=True, kw_only=True)
class SuiteSummary:
    """A suite as registered. Its experiments may also belong to other suites."""

    suite_name: str
    description: str
    created_at: str
    num_experiments: int
    questions: tuple[StatedQuestion, ...] = ()
    """What it asks, the oldest statement first; more than one means that the question was changed."""


@dataclass(frozen=True, kw_only=True)
class DamagedRow:
    """A row that is not what was written: its hash does not match. `key` is its primary key, as read.

    Where the file is damaged so that a table cannot be read to its end, `key` is empty.
    """

    table: str
    key: Mapping[str, Any]
    reason: str

    def __str__(self) -> str:
        where = ", ".join(f"{name} {value!r}" for name, value in self.key.items())
        return f"table {self.table}{f' ({where})' if where else ''}: {self.reason}"
