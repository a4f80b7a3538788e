"""The values that cross the boundary between the control side and the worker.

A worker appends records to `records.jsonl` in its run folder, one per line, checksummed and synced to disk;
the runner reads them and is the only one who writes the store. A record never says where it came from: the
folder does (pack and attempt), so a folder can be replayed or shipped to another machine.

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

from lorastudy.spec.experiment import Experiment, canonical_json

FORMAT_VERSION = 1
PACK_NAME = "pack.json"
RECORDS_NAME = "records.jsonl"
PREDICTIONS_NAME = "predictions.jsonl"
"""What the runner predicted of the pack before it handed the folder to a worker."""
RACE_NAME = "race.jsonl"  # the runner's word on which of a paused pack's experiments racing stopped
DONE_NAME = "done"
"""Written last: the worker is through with the folder, whatever came of it."""


@dataclass(frozen=True, kw_only=True)
class Pack:
    """What a worker is asked to do: experiments that train together. Written as `pack.json`."""

    id: str
    attempt: int
    engine: str
    experiments: tuple[Experiment, ...]
    resume_from: tuple[str, ...] = ()
    """Run folders of earlier attempts at these experiments, the newest first, as this one's folder is named."""
    reason: str | None = None
    """Why an earlier attempt did not end as it should, in words for the report."""
    rungs: tuple[float, ...] = ()
    """Shares of the training after which the held-out rows are scored."""
    pause_at: float | None = None
    """The share of the training to pause at; None for training to the end."""
    begun: float = 0.0
    """The share that its arms were brought to in another pack."""

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
    """What the numbers depend on besides the experiment: bits depend on all of it."""

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
    """What became of the rows. A refused row is one whose answer was cut away entirely by `max_seq_length`."""

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
    `eval`, `test` or `forgetting`; with `_before` behind it, the base model without adapter; `spec.racing` names `eval`
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


@dataclass(frozen=True, kw_only=True)
class ArmProfile:
    """What one experiment costs when it trains alone on the same base, measured over a few steps.

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
    tokens_per_second: float | None


@dataclass(frozen=True, kw_only=True)
class PackProfile:
    """What the pack as a whole cost: all its experiments together. Tokens are summed over the arms."""

    engine: str
    num_arms: int
    memory_kind: Literal["cuda_allocated", "cpu_resident"]
    peak_memory_bytes: int | None
    median_step_seconds: float | None
    tokens_per_second: float | None
    load_seconds: float
    train_seconds: float
    eval_seconds: float


IncidentKind = Literal["resumed", "not_resumed", "out_of_memory", "checkpoint_damaged", "checkpoint_failed"]


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Something that befell a pack and that a reader of its numbers should know, though it cost none of them."""

    kind: IncidentKind
    message: str
    step: int | None = None
    """After how many of the pack's steps."""


@dataclass(frozen=True, kw_only=True)
class CheckpointProfile:
    """What the checkpoints of a pack cost, earlier attempts' included. Not part of any other time here."""

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
    """What was predicted of an experiment before its pack ran; the runner's own record, beside the worker's.

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
    """Of the whole pack; None where no calibration was made."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One generated answer, kept as evidence beside the exact-match score."""

    experiment_id: str
    prompt: str
    reference: str
    answer: str


#: What ended a run before it completed. `outraced` is no failure: racing stopped it.
FailureKind = Literal["user", "diverged", "out_of_memory", "crashed", "error", "outraced"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one experiment ended, or that it pauses. `message` says why it is not complete, `traceback` belongs to a failure."""

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
    """The ends of all experiments that were open, in one line: a worker killed over it has said all or nothing.

    Otherwise a part of a pack could be left to be trained again, in other company and so not to the same bits.
    """

    outcomes: tuple[Outcome, ...]


Record = (
    Environment
    | DataSummary
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
    """What `encode` wrote.

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
    """Appends records to a file. Whatever is not a step is on disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, record: Record | PackEnd) -> None:
        """Append one record; steps are flushed, everything else is synced to disk."""
        self._file.write(encode(record) + "\n")
        self._file.flush()
        if not isinstance(record, PackStep):
            os.fsync(self._file.fileno())

    def sync(self) -> int:
        """Wait until all of it is on disk; return how many bytes it has."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()


class RecordReader:
    """Reads the whole lines that have been appended since the last call; a torn last line waits for its end."""

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
        """Whether something stands behind the last whole line that was read: of a worker that is writing, or died."""
        return self.path.exists() and self.path.stat().st_size > self._offset


def read_records(path: Path, *, num_bytes: int) -> list[Record]:
    """The records in the first bytes of a file, which end with a line.

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
    return values
