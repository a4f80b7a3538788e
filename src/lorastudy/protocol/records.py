"""The values that cross the boundary between the control side and the worker, and the lines in which they are written.

A worker reads a `Pack` and appends records to a file, one checksummed line each. The control side reads them and alone writes
the store. A record does not name its pack and attempt: the folder does, so a folder can be replayed or moved to another
machine. Every record except a step is on disk when `RecordWriter.write` returns, so a power cut takes back nothing that a
reader has seen.

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

from lorastudy.suite.experiment import Experiment, canonical_json

FORMAT_VERSION = 1

#: Raised whenever a definition changes; scores of different versions are never compared. That of the loss is also that of
#: perplexity and token accuracy, which come from the same pass.
LOSS_VERSION, EXACT_MATCH_VERSION = 1, 2

PACK_NAME = "pack.json"

RECORDS_NAME = "records.jsonl"

PREDICTIONS_NAME = "predictions.jsonl"
"""Memory predictions for the pack, written before a worker gets the folder."""

RACE_NAME = "race.jsonl"  # the runner's word on which of a paused pack's experiments racing stopped

DONE_NAME = "done"
"""Written last: the worker has finished with the folder, whatever the outcome."""


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
    """Why an earlier attempt did not end as it should, for the report."""
    rungs: tuple[float, ...] = ()
    """Shares of the training after which the held-out rows are scored."""
    pause_at: float | None = None
    """The share of the training to pause at; None for training to the end."""
    begun: float = 0.0
    """The share of the training that its arms have done in an earlier pack."""

    def write(self, folder: Path) -> None:
        """Write `pack.json` into the folder."""
        body = {
            **vars(self),
            "format": FORMAT_VERSION,
            "experiments": [e.to_json() for e in self.experiments],
        }
        (folder / PACK_NAME).write_text(json.dumps(body, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The pack that `write` wrote."""
        body = json.loads((folder / PACK_NAME).read_text(encoding="utf-8"))
        assert body.pop("format") == FORMAT_VERSION
        experiments = tuple(Experiment.from_json(e) for e in body["experiments"])
        listed = {key: tuple(body.get(key, ())) for key in ("resume_from", "rungs")}
        return cls(**{**body, **listed, "experiments": experiments})


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the numbers depend on besides the experiment. Their bits depend on all of it."""

    python: str
    torch: str
    transformers: str
    peft: str
    bitsandbytes: str
    lorastudy: str
    device: str
    device_name: str
    num_threads: int


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What became of the rows that a run reads. A refused row is one whose answer `max_seq_length` cut away entirely.

    A plain text longer than `max_seq_length` becomes several rows, which share a prompt, as `groups` says. `num_rows` and
    tokens count these rows. Duplicates, leaks, known prompts, near copies and refused rows are counted among texts.

    A row's prompt is what stands before its first answer, without regard to case, white space and Unicode form. A row
    of plain text, and one that asks nothing, has its own content in place of a prompt.
    """

    split: str
    format: str
    num_rows: int
    num_refused_rows: int
    num_truncated_rows: int
    num_tokens: int
    num_completion_tokens: int
    num_duplicate_rows: int | None = None
    """Training rows whose content stands earlier in the file."""
    num_leaked_rows: int | None = None
    """Held-out rows whose content is also trained on; of test rows, also those that stand among the held-out ones."""
    num_unread_rows: int | None = None
    """Training rows that the steps do not reach; no other count covers them. None where all rows are read.

    A plain text that is not read counts as one, though it may be long enough for several rows."""
    num_known_prompts: int | None = None
    """As `num_leaked_rows`, of rows whose prompt is there, whatever the answer."""
    num_near_copies: int | None = None
    """As `num_leaked_rows`, of rows that nearly repeat such a row, and whose prompt is not there."""
    num_compared_rows: int | None = None
    """On how many of this split's rows near copies were counted; a sample where there are more than 10,000."""
    num_compared_with: int | None = None
    """How many rows these were compared with, a sample of the `num_known_rows` where there are more than 10,000."""
    num_known_rows: int | None = None
    """Training rows; for test rows, held-out ones too."""
    split_by: Literal["prompt", "row"] | None = None
    """What decided which rows are held out; None where these rows have a file of their own."""
    groups: tuple[int, ...] | None = None
    """For each scored row, in order, a number that rows of one prompt share; None where no two rows share a prompt."""
    layout: Literal["chat", "alpaca", "plain", "text"] | None = None
    """What laid the rows out: the model's chat template, Alpaca's prompt, the plain layout, or no prompt at all."""
    num_fallback_rows: int | None = None
    """Rows whose functions the chat template has no notion of, so that it was given them as text."""
    template_preamble: str | None = None
    """What the chat template writes by itself before a conversation, such as a default system prompt."""
    template_date: str | None = None
    """The day that stands for today, where the chat template writes one."""
    num_asked_rows: int | None = None
    """Rows that are answered for exact match."""
    num_long_answers: int | None = None
    """Of these, rows whose answer has more tokens than an answer may have, so that none can match it."""
    unused_columns: tuple[str, ...] | None = None
    """Columns of its file that hold something and play no part."""
    unseen_fields: tuple[str, ...] | None = None
    """Fields of its messages of which the text of some row shows nothing."""
    num_texts: int | None = None
    """Rows of the file that the `num_rows` are made of; fewer where long plain texts became several rows each."""

    @property
    def num_usable_texts(self) -> int:
        """`num_texts`; of runs that did not record it `num_rows`, since each of their rows is a text of its own."""
        return self.num_rows if self.num_texts is None else self.num_texts

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `dataclasses.asdict` made plain."""
        lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})


#: What answers without a model; `data.answers` says how.
TrivialPredictor = Literal["constant", "frequencies", "unigram"]


@dataclass(frozen=True, kw_only=True)
class TrivialScore:
    """One metric of a trivial predictor on one split, of all of a pack's experiments: as `Score`, on the same rows."""

    predictor: TrivialPredictor
    split: str
    metric: str
    version: int
    unit: str
    value: float
    items: tuple[float, ...] = ()
    """Empty before a run, where only the value is asked for."""
    weights: tuple[int, ...] | None = None
    answer: str | None = None
    """What the constant answer says, where it is compared as a text."""


@dataclass(frozen=True, kw_only=True)
class RowsRead:
    """What becomes of the rows of one split, and the lengths that would have kept them; these a run does not record."""

    summary: DataSummary
    trivial: tuple[TrivialScore, ...] = ()
    """What trivial predictors score on them, without items."""
    length_of_all: int | None = None
    """Tokens of the longest row, whole."""
    length_of_most: int | None = None
    """Tokens that keep 95 % of the rows whole."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `dataclasses.asdict` made plain."""
        trivial = tuple(TrivialScore(**{**score, "items": ()}) for score in values.get("trivial", ()))
        return cls(**{**values, "summary": DataSummary.from_json(values["summary"]), "trivial": trivial})


@dataclass(frozen=True, kw_only=True)
class ArmStep:
    """One optimizer step of one experiment."""

    experiment_id: str
    loss: float | None
    """Nats per completion token of the effective batch, before the step; None when it is not finite."""
    learning_rate: float
    grad_norm: float | None
    """Before clipping; None when it is not finite."""


@dataclass(frozen=True, kw_only=True)
class PackStep:
    """One optimizer step of every experiment that is still training. `step` counts from 1."""

    step: int
    num_steps: int
    num_tokens: int
    num_completion_tokens: int
    seconds: float
    arms: tuple[ArmStep, ...]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one experiment on one split, with its value for every item.

    `value` is the mean of `items` weighted by `weights` (all ones where `weights` is None); perplexity's is the
    exponential of the mean loss, not the mean of its items. `split` is
    `eval`, `test` or `forgetting`; with `_before` behind it, the base model without adapter; `suite.question` names `eval`
    on the way. `version` changes whenever the definition does; scores of different versions are never compared.
    """

    experiment_id: str
    split: str
    metric: str
    version: int
    unit: str
    value: float
    items: tuple[float, ...]
    weights: tuple[int, ...] | None = None


#: Two measurements of the same arm's step agree when they differ by at most this share, else its time is unknown; and
#: times of two arms that differ by no more are not told apart.
STEP_TIME_FLOOR = 0.05


@dataclass(frozen=True, kw_only=True)
class ArmProfile:
    """What one experiment costs when it trains alone on the same base, measured before it trains.

    Peak memory is what the device allocator held at most (CUDA), or the peak of live tensor bytes (CPU); the
    `memory_kind` says which. Speed counts real tokens; padding is not counted.
    """

    experiment_id: str
    num_trainable_parameters: int
    num_total_parameters: int
    adapter_bytes: int
    memory_kind: Literal["cuda_allocated", "cpu_tensors"]
    peak_memory_bytes: int | None
    step_seconds: float | None
    """Median of the timed steps; None where two measurements of the arm did not agree, or were too few for that."""
    tokens_per_second: float | None
    num_timed_steps: int | None = None
    step_quartile_distance_seconds: float | None = None
    """Between the first and the third quartile of the timed steps."""
    step_times_apart: float | None = None
    """Share by which two measurements of this arm, interleaved with those of the others, differed (A/A).

    That of the pack's middle arm where that is more.
    """
    modules_by_role: Mapping[str, int] | None = None
    """How many layers of each role it adapts (`suite.targets.ROLES`)."""
    modules_left_out: tuple[str, ...] = ()
    """What its preset means and PEFT cannot adapt, with the reason."""
    modules_digest: str | None = None
    """Equal for experiments that adapt the same layers."""


@dataclass(frozen=True, kw_only=True)
class PackProfile:
    """What the pack as a whole cost: all its experiments together. Tokens are summed over the arms.

    Seconds include all attempts that it continues, such as earlier phases of a race, and scoring at rungs.
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


IncidentKind = Literal[
    "resumed", "not_resumed", "out_of_memory", "checkpoint_damaged", "checkpoint_failed", "fell_back"
]

#: The first words of an incident's message when the reference engine replaces the packed one.
FELL_BACK = "engine: reference, since "


@dataclass(frozen=True, kw_only=True)
class Incident:
    """An event in a pack that readers of its numbers should know, though it changed none of them."""

    kind: IncidentKind
    message: str
    step: int | None = None
    """Steps of the pack that were done by then."""


@dataclass(frozen=True, kw_only=True)
class CheckpointProfile:
    """What the checkpoints of a pack cost, including earlier attempts. Not part of any other time here."""

    num_checkpoints: int
    last_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class MemoryTerms:
    """Bytes at the peak of a step, by what holds them. Their sum is the predicted peak."""

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
        """(term, bytes), in the order in which they stand above."""
        return [(field.name, getattr(self, field.name)) for field in dataclasses.fields(MemoryTerms)]


@dataclass(frozen=True, kw_only=True)
class MemoryPrediction(MemoryTerms):
    """The memory predicted for an experiment before its pack ran. The control side writes it, not the worker.

    `alone_bytes` stands against the experiment's profile, `pack_bytes` against the pack's; the terms are those of
    `alone_bytes`. The micro-batch is the largest one that the pack will see.
    """

    experiment_id: str
    memory_kind: Literal["cuda_allocated", "cpu_tensors"]
    num_tokens: int
    num_labels: int
    alone_bytes: int
    pack_bytes: int
    step_seconds: float | None
    """Of the whole pack; None without a calibration."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One generated answer, kept as evidence beside the exact-match score."""

    experiment_id: str
    prompt: str
    reference: str
    answer: str


#: What ended a run before it completed. `pruned` is no failure: racing stopped it.
FailureKind = Literal["user", "diverged", "out_of_memory", "crashed", "error", "pruned"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one experiment ended, or that it pauses. `message` says why it is not complete; a failure has a `traceback`."""

    experiment_id: str
    status: Literal["completed", "failed", "stopped", "paused"]
    failure_kind: FailureKind | None = None
    message: str | None = None
    traceback: str | None = None
    step: int | None = None
    adapter_path: str | None = None
    """Relative to the run folder."""


@dataclass(frozen=True, kw_only=True)
class PackEnd:
    """The ends of all experiments that were open, in one line, so that a kill loses all of them or none.

    Otherwise only a part of a pack might be trained again, with other arms beside it and so not to the same bits.
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
)

_TYPES: dict[str, type[Any]] = {cls.__name__: cls for cls in (*get_args(Record), PackEnd)}


def encode(record: Record | PackEnd) -> str:
    """One line: `{"sha256": <16 hex digits of the canonical body>, "type": ..., "body": ...}`."""
    body = dataclasses.asdict(record)
    kind = type(record).__name__
    return json.dumps({"sha256": _checksum(kind, body), "type": kind, "body": body}, allow_nan=False)


def decode(line: str) -> Record | PackEnd:
    """Read a line that `encode` wrote.

    Raises:
        ValueError: the line is torn or damaged.
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
    """Reads the lines that were appended since the last call. A last line without an end is left for later."""

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
        """Whether an unfinished line follows the last one that was read: the worker is writing, or died."""
        return self.path.exists() and self.path.stat().st_size > self._offset


def read_records(path: Path, *, num_bytes: int) -> list[Record]:
    """The records in the first `num_bytes` of a file, which must end with a line.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is damaged, or the file is shorter.
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
    if values.get("failure_kind") == "outraced":  # run folders from before the first release
        values["failure_kind"] = "pruned"
    return values
