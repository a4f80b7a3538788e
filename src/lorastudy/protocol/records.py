"""The values that pass between the control side and the worker, and their format as lines of a file.

A worker reads a `Pack` and appends records to a file, one checksummed line per record. The control side reads them, and
it alone writes the store. The folder identifies pack and attempt, the records do not, so a folder can be replayed or
moved to another machine. Every record except a step is on disk when `RecordWriter.write` returns, so it survives a
power cut.

An absent measurement is `None`, never a default.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self, get_args

from lorastudy.protocol.scoring import AddedScore, FailedRow, Scoring
from lorastudy.suite.experiment import Experiment, canonical_json

FORMAT_VERSION = 1

#: Increase a version when the definition changes. Scores of different versions are never compared. Perplexity and token
#: accuracy come from the same pass as the loss and share its version.
LOSS_VERSION, EXACT_MATCH_VERSION = 1, 2

PACK_NAME = "pack.json"

RECORDS_NAME = "records.jsonl"

PREDICTIONS_NAME = "predictions.jsonl"
"""Memory predictions for the pack, written before a worker gets the folder."""

RACE_NAME = "race.jsonl"  # the runner records here which experiments of a paused pack racing stopped

DONE_NAME = "done"
"""The worker writes this file last, whatever the outcomes are."""


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Experiments that train together, as a worker reads them from `pack.json`."""

    id: str
    attempt: int
    engine: str
    experiments: tuple[Experiment, ...]
    resume_from: tuple[str, ...] = ()
    """Run folders of earlier attempts at these experiments, newest first, relative to this one."""
    reason: str | None = None
    """Why an earlier attempt failed or was interrupted, for the report."""
    rungs: tuple[float, ...] = ()
    """Shares of the training after which the held-out rows are scored."""
    pause_at: float | None = None
    """The share of the training at which the pack pauses; None if it trains to the end."""
    begun: float = 0.0
    """The share of the training that these arms completed in an earlier pack."""
    scoring: Scoring | None = None
    """For a pack that scores stored adapters and trains nothing."""

    def write(self, folder: Path) -> None:
        """Write `pack.json` into the folder."""
        body = {
            **vars(self),
            "format": FORMAT_VERSION,
            "experiments": [e.to_json() for e in self.experiments],
            "scoring": None if self.scoring is None else self.scoring.to_json(),
        }
        (folder / PACK_NAME).write_text(json.dumps(body, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The pack that `write` wrote."""
        body = json.loads((folder / PACK_NAME).read_text(encoding="utf-8"))
        assert body.pop("format") == FORMAT_VERSION
        experiments = tuple(Experiment.from_json(e) for e in body["experiments"])
        listed = {key: tuple(body.get(key, ())) for key in ("resume_from", "rungs")}
        scoring = None if body.get("scoring") is None else Scoring.from_json(body["scoring"])
        return cls(**{**body, **listed, "experiments": experiments, "scoring": scoring})


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Everything besides the experiment on which the bits of a run's numbers depend."""

    python: str
    torch: str
    transformers: str
    peft: str
    bitsandbytes: str
    lorastudy: str
    device: str
    device_name: str
    num_threads: int
    algorithms: Literal["deterministic", "fastest"] | None = None
    """Deterministic ones give the same bits in a second run: always on a CPU, on CUDA as the suite says. None if the run
    is older than this record."""


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """Counts and properties of the rows that a run reads. In a refused row `max_seq_length` cuts off the whole answer.

    A plain text longer than `max_seq_length` becomes several rows of one prompt group (`groups`). `num_rows` and the
    token counts refer to these rows. Duplicates, leaks, known prompts, near copies and refused rows are counted per
    text.

    A row's prompt is the text before its first answer, regardless of case, white space and Unicode form. For a plain
    text, and for a row without a question, the content itself serves as the prompt.
    """

    split: str
    format: str
    num_rows: int
    num_refused_rows: int
    num_truncated_rows: int
    num_tokens: int
    num_completion_tokens: int
    num_duplicate_rows: int | None = None
    """Training rows, of all that there are, whose content already occurs in an earlier one."""
    num_leaked_rows: int | None = None
    """Rows of this split whose content is also in the training rows; for test rows, also in the held-out rows."""
    num_unread_rows: int | None = None
    """Training rows outside the sample that is counted, if there are too many to count all; else None.

    The counts of rows and tokens, and the scores of guessing, are about the sample. An unread plain text counts as one
    row, even if it is long enough for several."""
    num_known_prompts: int | None = None
    """As `num_leaked_rows`, but rows whose prompt occurs there, with any answer."""
    num_near_copies: int | None = None
    """As `num_leaked_rows`, but rows that nearly repeat a row there and whose prompt does not occur there."""
    num_compared_rows: int | None = None
    """The number of this split's rows that were checked for near copies: a sample if there are more than 10,000."""
    num_compared_with: int | None = None
    """The number of rows that they were compared with: a sample of `num_known_rows` if there are more than 10,000."""
    num_known_rows: int | None = None
    """Training rows; for test rows, held-out ones too."""
    split_by: Literal["prompt", "row"] | None = None
    """The unit by which rows were held out; None if these rows have their own file."""
    groups: tuple[int, ...] | None = None
    """The prompt group of each scored row: rows with the same prompt share a number. None if all prompts differ."""
    layout: Literal["chat", "alpaca", "plain", "text"] | None = None
    """The layout of the rows: the model's chat template, Alpaca's prompt, the plain layout, or no prompt at all."""
    num_fallback_rows: int | None = None
    """Rows whose functions were passed to the chat template as text, since it does not support functions."""
    template_preamble: str | None = None
    """Text that the chat template adds before a conversation, such as a default system prompt."""
    template_date: str | None = None
    """The fixed date that replaces today's, if the chat template writes the date."""
    num_asked_rows: int | None = None
    """Rows that exact match scores."""
    num_long_answers: int | None = None
    """Of these, rows whose reference has more tokens than a generated answer may have, so that no answer can match."""
    unused_columns: tuple[str, ...] | None = None
    """Columns of the file that have content and are not used."""
    unseen_fields: tuple[str, ...] | None = None
    """Fields of the messages whose content is missing from the text of at least one row."""
    num_texts: int | None = None
    """Rows of the file behind `num_rows`. Fewer than `num_rows` if long plain texts were cut into several rows."""

    @property
    def num_usable_texts(self) -> int:
        """`num_texts`, or `num_rows` for runs that did not record it, since there every row is one text."""
        return self.num_rows if self.num_texts is None else self.num_texts

    @property
    def num_rows_in_all(self) -> int:
        """The rows that were read, and those that are trained on without being counted."""
        return self.num_rows + (self.num_unread_rows or 0)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The value whose `dataclasses.asdict` these plain JSON values are."""
        lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})


#: Predictors that answer without a model. `data.answers` defines them.
TrivialPredictor = Literal["constant", "frequencies", "unigram"]


@dataclass(frozen=True, kw_only=True)
class TrivialScore:
    """One metric of a trivial predictor on one split, as `Score` on the same rows. It holds for the whole pack."""

    predictor: TrivialPredictor
    split: str
    metric: str
    version: int
    unit: str
    value: float
    items: tuple[float, ...] = ()
    """Empty in a plan, which needs only the value."""
    weights: tuple[int, ...] | None = None
    answer: str | None = None
    """The text of the constant answer, if answers are compared as text."""


@dataclass(frozen=True, kw_only=True)
class RowsRead:
    """A plan's summary of the rows of one split, with the sequence lengths that would keep them whole."""

    summary: DataSummary
    trivial: tuple[TrivialScore, ...] = ()
    """The scores of trivial predictors on these rows, without items."""
    length_of_all: int | None = None
    """Tokens of the longest row before any cut."""
    length_of_most: int | None = None
    """Tokens that keep 95 % of the rows whole."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The value whose `dataclasses.asdict` these plain JSON values are."""
        trivial = tuple(TrivialScore(**{**score, "items": ()}) for score in values.get("trivial", ()))
        return cls(**{**values, "summary": DataSummary.from_json(values["summary"]), "trivial": trivial})


@dataclass(frozen=True, kw_only=True)
class ArmStep:
    """One optimizer step of one experiment."""

    experiment_id: str
    loss: float | None
    """Nats per completion token of the effective batch, before the step; None if it is not finite."""
    learning_rate: float
    grad_norm: float | None
    """The norm before clipping; None if it is not finite."""


@dataclass(frozen=True, kw_only=True)
class PackStep:
    """One optimizer step of every experiment that is still training. `step` counts from 1.

    `num_tokens` and `num_completion_tokens` are sums over `arms`. Where a pack goes on with fewer arms, both and `seconds` are
    the even share of these arms, since the record does not say what each arm with rows of its own read. Records of 0.1.0
    have the completion tokens of one arm.
    """

    step: int
    num_steps: int
    num_tokens: int
    num_completion_tokens: int
    seconds: float
    arms: tuple[ArmStep, ...]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one experiment on one split, with its value for every item.

    `value` is the mean of `items` weighted by `weights` (all ones if `weights` is None). The value of perplexity is the
    exponential of the mean loss, not the mean of its items. `split` is `eval`, `test` or `forgetting`. The suffix
    `_before` marks the base model without adapter. `suite.question.rung_split` names `eval` at a rung, and
    `suite.eval_points.point_split` at an evaluation point. `version` changes with the definition; scores of different
    versions are never compared.
    """

    experiment_id: str
    split: str
    metric: str
    version: int
    unit: str
    value: float
    items: tuple[float, ...]
    weights: tuple[int, ...] | None = None
    step: int | None = None
    """The step of the training after which an adapter on the way was scored; None at the end and before."""
    train_seconds: float | None = None
    """The experiment's share of the pack's training time up to that step."""


#: The largest share by which two measurements of the same arm's step may differ. If they differ by more, its time is
#: unknown. Times of two arms that differ by no more than this count as equal.
STEP_TIME_FLOOR = 0.05


@dataclass(frozen=True, kw_only=True)
class ArmProfile:
    """The cost of one experiment that trains alone on the same base, measured before training.

    Peak memory is the allocator's peak (CUDA) or the peak of live tensor bytes (CPU); `memory_kind` is one of the two.
    Speed counts real tokens, not padding.
    """

    experiment_id: str
    num_trainable_parameters: int
    num_total_parameters: int
    adapter_bytes: int
    memory_kind: Literal["cuda_allocated", "cpu_tensors"]
    peak_memory_bytes: int | None
    step_seconds: float | None
    """Median of the timed steps; None if two measurements of the arm disagree or have too few steps."""
    tokens_per_second: float | None
    num_timed_steps: int | None = None
    step_quartile_distance_seconds: float | None = None
    """Distance between the first and the third quartile of the timed steps."""
    step_times_apart: float | None = None
    """Share by which two interleaved measurements of this arm differ (A/A).

    At least the share of the pack's middle arm.
    """
    modules_by_role: Mapping[str, int] | None = None
    """The number of adapted layers by role (`suite.targets.ROLES`)."""
    modules_left_out: tuple[str, ...] = ()
    """Modules of the arm's preset that PEFT cannot adapt, with the reason."""
    modules_digest: str | None = None
    """Equal for experiments that adapt the same layers."""


@dataclass(frozen=True, kw_only=True)
class PackProfile:
    """The cost of the whole pack. Tokens are summed over the arms.

    Seconds include earlier attempts that it resumes, such as earlier phases of a race, and scoring on the way.
    """

    engine: str
    num_arms: int
    memory_kind: Literal["cuda_allocated", "cpu_resident"]
    peak_memory_bytes: int | None
    median_step_seconds: float | None
    tokens_per_second: float | None
    load_seconds: float
    train_seconds: float
    eval_seconds: float
    cuda_allocator: str | None = None
    """The settings of CUDA's allocator; None on a CPU."""


IncidentKind = Literal[
    "resumed", "not_resumed", "out_of_memory", "checkpoint_damaged", "checkpoint_failed", "fell_back"
]

#: The first words of an incident's message when the reference engine replaces the packed one.
FELL_BACK = "engine: reference, since "


@dataclass(frozen=True, kw_only=True)
class Incident:
    """An event in a pack that a reader of its numbers should know, although it changed none of them."""

    kind: IncidentKind
    message: str
    step: int | None = None
    """Steps of the pack done before the event."""


@dataclass(frozen=True, kw_only=True)
class CheckpointProfile:
    """The cost of a pack's checkpoints, including earlier attempts. No other record includes this time."""

    num_checkpoints: int
    last_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class MemoryTerms:
    """Bytes at the peak of a step, by use. Their sum is the predicted peak."""

    base_weights: int
    quantisation_constants: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    workspace: int
    allocator_slack: int

    @property
    def total(self) -> int:
        """Predicted peak bytes."""
        return sum(value for _, value in self.named())

    def named(self) -> list[tuple[str, int]]:
        """(term, bytes) in the order of the fields."""
        return [(field.name, getattr(self, field.name)) for field in dataclasses.fields(MemoryTerms)]


@dataclass(frozen=True, kw_only=True)
class MemoryPrediction(MemoryTerms):
    """The memory predicted for an experiment before its pack ran. The control side writes it, not the worker.

    Compare `alone_bytes` with the experiment's profile and `pack_bytes` with the pack's profile. The terms add up to
    `alone_bytes`. The micro-batch is the largest one of the pack.
    """

    experiment_id: str
    memory_kind: Literal["cuda_allocated", "cpu_tensors"]
    num_tokens: int
    num_labels: int
    alone_bytes: int
    pack_bytes: int
    step_seconds: float | None
    """Seconds of a step of the whole pack; None without a calibration."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One generated answer, kept as evidence beside the exact-match score."""

    experiment_id: str
    prompt: str
    reference: str
    answer: str
    split: str | None = None
    """As in `Score`. None in stores of an older version, like `row`."""
    row: int | None = None
    """Place among the scored rows of the split, from 0, as in the items of its loss."""


#: Why a run ended before completion. `pruned` is no failure: racing stopped the run.
FailureKind = Literal["user", "diverged", "out_of_memory", "crashed", "error", "pruned"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end or pause of one experiment. `message` is the reason if it is incomplete. A failure has a `traceback`."""

    experiment_id: str
    status: Literal["completed", "failed", "stopped", "paused"]
    failure_kind: FailureKind | None = None
    message: str | None = None
    traceback: str | None = None
    step: int | None = None
    adapter_path: str | None = None
    """Relative to the run folder."""
    num_planned_steps: int | None = None
    """The steps of a whole training, for a completed experiment. More than `step` if it stopped early."""
    selected_step: int | None = None
    """The step whose adapter was saved and scored, if the best one is selected; None if it is always the last."""


@dataclass(frozen=True, kw_only=True)
class PackEnd:
    """The outcomes of all open experiments in one line, so that a kill loses all of them or none.

    If a kill lost some of them, only a part of the pack would train again, and a smaller pack gives other bits.
    """

    outcomes: tuple[Outcome, ...]


Record = (
    Environment
    | DataSummary
    | TrivialScore
    | PackStep
    | Score
    | ArmProfile
    | PackProfile
    | MemoryPrediction
    | CheckpointProfile
    | Incident
    | Generation
    | Outcome
    | AddedScore
)

_TYPES: dict[str, type[Any]] = {cls.__name__: cls for cls in (*get_args(Record), PackEnd)}


def encode(record: Record | PackEnd) -> str:
    """One line: `{"sha256": <16 hex digits of the canonical body>, "type": ..., "body": ...}`."""
    body = dataclasses.asdict(record)
    kind = type(record).__name__
    return json.dumps({"sha256": _checksum(kind, body), "type": kind, "body": body}, allow_nan=False)


def decode(line: str) -> Record | PackEnd:
    """The record in a line that `encode` wrote.

    Raises:
        ValueError: the line is incomplete or damaged.
    """
    outer = json.loads(line)
    is_record = isinstance(outer, dict) and outer.keys() == {"sha256", "type", "body"}
    if not is_record or str(outer["type"]) not in _TYPES:
        raise ValueError("not a record")
    kind, body = outer["type"], outer["body"]
    if outer["sha256"] != _checksum(kind, body):
        raise ValueError("checksum does not match")
    record: Record | PackEnd = _TYPES[kind](**_with_tuples(body))
    return record


class RecordWriter:
    """Appends records to a file. Every record except a step is on disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, record: Record | PackEnd) -> None:
        """Append one record. Steps are flushed; everything else is synced to disk."""
        self._file.write(encode(record) + "\n")
        self._file.flush()
        if not isinstance(record, PackStep):
            os.fsync(self._file.fileno())

    def sync(self) -> int:
        """Wait until the whole file is on disk; return its bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()


class RecordReader:
    """Reads the lines since the last call. An unfinished last line is left for the next call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def read_new(self) -> Iterator[Record]:
        """Yield new records.

        Raises:
            ValueError: a whole line is damaged.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield from _flat(decode(line.decode("utf-8")))

    def has_torn_end(self) -> bool:
        """Whether unread bytes follow the last line that was read: the worker is writing, or it died."""
        return self.path.exists() and self.path.stat().st_size > self._offset


def read_records(path: Path, *, num_bytes: int) -> list[Record]:
    """The records in the first `num_bytes` of a file. These bytes must end at the end of a line.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is damaged, or the file is shorter than `num_bytes`.
    """
    with path.open("rb") as file:
        content = file.read(num_bytes)
    if len(content) < num_bytes or not content.endswith(b"\n"):
        raise ValueError(f"{path} has no whole line at byte {num_bytes}")
    return [record for line in content.decode().splitlines() for record in _flat(decode(line))]


def _flat(record: Record | PackEnd) -> tuple[Record, ...]:
    return record.outcomes if isinstance(record, PackEnd) else (record,)


def _checksum(kind: str, body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json([kind, body]).encode()).hexdigest()[:16]


def _with_tuples(body: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in body.items()}
    if "arms" in values:
        values["arms"] = tuple(ArmStep(**arm) for arm in values["arms"])
    if "outcomes" in values:
        values["outcomes"] = tuple(Outcome(**outcome) for outcome in values["outcomes"])
    if "failed_rows" in values:
        values["failed_rows"] = tuple(FailedRow(**row) for row in values["failed_rows"])
    if values.get("failure_kind") == "outraced":  # run folders from before the first release
        values["failure_kind"] = "pruned"
    return values
