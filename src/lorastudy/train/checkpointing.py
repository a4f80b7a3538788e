"""Checkpoints of a pack: write an engine's state to files, find the newest that fits, and read it back with the same bits.

    checkpoint-<n>/
      state.json            numbers, and the caller's notes
      tensors.safetensors   every tensor, as `<index of the arm>/<name of the tensor>`
      best-<id>-<file>      the files of an arm's best adapter so far, if the best one is selected
      manifest.json         size and SHA-256 of all

Nothing is pickled. Each folder is sealed (`protocol/files.py`): it is written whole or not at all, and reading checks
every byte. The newest two are kept, so that the older one is there if the newer one is damaged.

A checkpoint fits if it holds every arm of the pack and comes from the same engine in the same environment, down to the
number of threads. Only then does a resumed training give the same bits as an uninterrupted one. Otherwise the pack
starts anew. Incidents give the reason why a checkpoint was not used.

The times of a pack over all its attempts lie in its checkpoints, and the seconds that a checkpoint takes decide when the next one
is written.
"""

import dataclasses
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from lorastudy.engine.arms import STATE_VERSION, ArmState, Engine, EngineState, TrainingArm
from lorastudy.protocol.files import DamagedError, read_sealed_folder, write_sealed_folder
from lorastudy.protocol.records import (
    RECORDS_NAME,
    ArmProfile,
    CheckpointProfile,
    Environment,
    Incident,
    Outcome,
    PackStep,
    Record,
    Score,
    read_records,
)
from lorastudy.protocol.run_folder import (
    CHECKPOINTS_NAME,
    attempt_name,
    checkpoint_folder,
    checkpoint_folders,
)
from lorastudy.suite.eval_points import is_on_the_way
from lorastudy.train.outcomes import PackRun, Stopped
from lorastudy.train.selection import ArmSelection, Selected, Selection

Clock = Callable[[], float]
"""A monotonic clock, in seconds."""

#: The largest share of training time that may go into checkpoints.
MAX_CHECKPOINT_SHARE = 0.03


@dataclass(kw_only=True)
class Stopwatch:
    """Seconds between laps."""

    clock: Clock = time.perf_counter
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._last = self.clock()

    def lap(self) -> float:
        """Seconds since the last lap, or since the start."""
        now = self.clock()
        seconds, self._last = now - self._last, now
        return seconds


@dataclass(kw_only=True)
class TrainingTimes:
    """Seconds of each training step, of loading and of scoring on the way, including earlier attempts that it resumes.

    Other work between two steps does not count as training.
    """

    seconds: list[float] = field(default_factory=list)
    load_seconds: float = 0.0
    validation_seconds: float = 0.0
    num_tokens: int = 0
    watch: Stopwatch = field(default_factory=Stopwatch)

    def step(self, num_tokens: int) -> float:
        """Record a step that just ended; return its seconds."""
        self.seconds.append(self.watch.lap())
        self.num_tokens += num_tokens
        return self.seconds[-1]

    def carry(self, step: PackStep) -> None:
        """Record a step of an earlier attempt."""
        self.seconds.append(step.seconds)
        self.num_tokens += step.num_tokens

    @property
    def train_seconds(self) -> float:
        """Seconds of all steps together."""
        return sum(self.seconds)

    @property
    def median_step_seconds(self) -> float | None:
        """Median seconds of a step; None before the first step."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second, summed over the arms. There is no padding."""
        return self.num_tokens / self.train_seconds if self.seconds else None


@dataclass(kw_only=True)
class CheckpointSchedule:
    """When the next checkpoint is due: after a number of steps or seconds, at no more than `MAX_CHECKPOINT_SHARE`.

    The share is checkpoint time divided by all training time so far. It assumes that the next checkpoint takes as long
    as the last one. So a slow disk or a large state lengthens the interval.
    """

    every_steps: int | None
    every_seconds: float | None
    num_checkpoints: int = 0
    last_bytes: int = 0
    seconds: float = 0.0
    last_seconds: float = 0.0
    _num_steps_at_last: int = 0
    _train_seconds_at_last: float = 0.0

    def is_due(self, times: TrainingTimes) -> bool:
        """Whether to write a checkpoint after the step that just ended."""
        num_steps = len(times.seconds) - self._num_steps_at_last
        since = times.train_seconds - self._train_seconds_at_last
        is_wanted = (self.every_steps is not None and num_steps >= self.every_steps) or (
            self.every_seconds is not None and since >= self.every_seconds
        )
        return is_wanted and self.seconds + self.last_seconds <= MAX_CHECKPOINT_SHARE * times.train_seconds

    def took(self, seconds: float, *, num_bytes: int | None, times: TrainingTimes) -> None:
        """Record the cost of a checkpoint. `num_bytes` is None if it could not be written."""
        self.seconds += seconds
        self.last_seconds = seconds
        self.begin(times)
        if num_bytes is not None:
            self.num_checkpoints += 1
            self.last_bytes = num_bytes

    def begin(self, times: TrainingTimes) -> None:
        """Count steps and time from here."""
        self._num_steps_at_last, self._train_seconds_at_last = len(times.seconds), times.train_seconds

    def profile(self) -> CheckpointProfile:
        """The cost of all checkpoints, as a record."""
        return CheckpointProfile(
            num_checkpoints=self.num_checkpoints, last_bytes=self.last_bytes, seconds=self.seconds
        )


@dataclass(kw_only=True)
class Checkpointer:
    """Writes the checkpoints of one attempt at a pack. If a write fails, training continues."""

    run: PackRun
    engine: Engine
    environment: Environment
    times: TrainingTimes
    schedule: CheckpointSchedule
    selection: Selection
    _num_steps_saved: int = 0

    def __post_init__(self) -> None:
        self._num_steps_saved = len(
            self.times.seconds
        )  # the checkpoint that this attempt resumed from holds these steps
        self.schedule.begin(self.times)

    def after_step(self) -> None:
        """Save if a checkpoint is due. The time to write it does not count as part of the next step."""
        if self.schedule.is_due(self.times):
            self.save()
            self.times.watch.lap()

    def save(self) -> None:
        """Write a checkpoint if there was a step since the last one."""
        num_steps = len(self.times.seconds)
        if num_steps == self._num_steps_saved:
            return
        watch = Stopwatch(clock=self.times.watch.clock)
        try:
            checkpoint = Checkpoint(
                state=self.engine.state(), notes=self._notes(), selected=self.selection.now()
            )
            num_bytes = write_checkpoint(checkpoint_folder(self.run.folder, num_steps), checkpoint)
        except OSError as error:
            message = (
                f"a checkpoint could not be written: {error}; training goes on, and the one before it stays"
            )
            self.run.emit(Incident(kind="checkpoint_failed", message=message, step=num_steps))
            self.schedule.took(watch.lap(), num_bytes=None, times=self.times)
        else:
            self._num_steps_saved = num_steps
            self.schedule.took(watch.lap(), num_bytes=num_bytes, times=self.times)

    @contextmanager
    def saving_when_stopped(self) -> Iterator[None]:
        """In this context, a request to stop first writes a checkpoint."""
        try:
            yield
        except Stopped:
            self.save()
            raise

    def _notes(self) -> dict[str, Any]:
        """The number of bytes of records up to this checkpoint, the environment that it needs, and the times so far."""
        return {
            "records_bytes": self.run.sync(),
            "environment": dataclasses.asdict(self.environment),
            "checkpoints": dataclasses.asdict(self.schedule.profile()),
            "load_seconds": self.times.load_seconds,
            "validation_seconds": self.times.validation_seconds,
        }


NUM_KEPT = 2

STATE_NAME = "state.json"

TENSORS_NAME = "tensors.safetensors"

_BEST_PREFIX = "best-"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An engine's state with what was selected by then, and the caller's notes as plain JSON values."""

    state: EngineState
    notes: Mapping[str, Any]
    selected: Selected = field(default_factory=lambda: Selected(arms={}, adapters={}))


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> int:
    """Write a checkpoint and delete all but the newest `NUM_KEPT`; return its size in bytes.

    Raises:
        OSError: the checkpoint could not be written. Earlier checkpoints stay.
    """
    files = _files(checkpoint)
    write_sealed_folder(folder, files)
    for old in checkpoint_folders(folder.parent)[NUM_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return sum(map(len, files.values()))


class OtherVersionError(Exception):
    """A checkpoint is whole, but of another version: its tensors may hold their numbers in another order."""


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, with its tensors on the CPU.

    Raises:
        DamagedError: a file differs from its manifest, or another program wrote it.
        OtherVersionError: another version of this program wrote it.
    """
    files = read_sealed_folder(folder)
    try:
        body = json.loads(files[STATE_NAME])
        _check_version(body)
        tensors = load(files[TENSORS_NAME])
        arms = tuple(_arm(number, values, tensors=tensors) for number, values in enumerate(body.pop("arms")))
        notes = body.pop("notes")
        selected = Selected(
            arms={key: ArmSelection.from_json(arm) for key, arm in body.pop("selected", {}).items()},
            adapters=_best_adapters(files),
        )
        return Checkpoint(state=EngineState(arms=arms, **body), notes=notes, selected=selected)
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        # Sealed by another program.
        raise DamagedError(f"{folder}: not a checkpoint of this version: {error}") from error


def _check_version(body: Mapping[str, Any]) -> None:
    found = body.get("version")
    if found != STATE_VERSION:
        raise OtherVersionError(
            f"its checkpoint is of another version of lorastudy: it has format {found}, and this version has {STATE_VERSION}"
        )


def _files(checkpoint: Checkpoint) -> dict[str, bytes]:
    state = checkpoint.state
    tensors = {
        f"{number}/{name}": tensor.detach().cpu().contiguous()
        for number, arm in enumerate(state.arms)
        for name, tensor in arm.tensors.items()
    }
    body = {
        **vars(state),
        "arms": [{**vars(arm), "tensors": sorted(arm.tensors)} for arm in state.arms],
        "selected": {key: arm.to_json() for key, arm in checkpoint.selected.arms.items()},
        "notes": checkpoint.notes,
    }
    best = {
        f"{_BEST_PREFIX}{experiment_id}-{name}": content
        for experiment_id, files in checkpoint.selected.adapters.items()
        for name, content in files.items()
    }
    return {STATE_NAME: json.dumps(body).encode(), TENSORS_NAME: save(tensors), **best}


def _best_adapters(files: Mapping[str, bytes]) -> dict[str, dict[str, bytes]]:
    """The files of the best adapters, by experiment and name. An id is `exp-` and hex digits, without another dash."""
    found: dict[str, dict[str, bytes]] = {}
    for name, content in files.items():
        if name.startswith(_BEST_PREFIX):
            tag, digits, file = name.removeprefix(_BEST_PREFIX).split("-", maxsplit=2)
            found.setdefault(f"{tag}-{digits}", {})[file] = content
    return found


def _arm(number: int, values: Mapping[str, Any], *, tensors: Mapping[str, Any]) -> ArmState:
    return ArmState(
        **{**values, "tensors": {name: tensors[f"{number}/{name}"] for name in values["tensors"]}}
    )


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """The point from which a pack continues an earlier attempt."""

    state: EngineState
    records: tuple[Record, ...]
    """The records up to this point that concern arms of this pack."""
    num_checkpoints: int
    checkpoint_seconds: float
    load_seconds: float
    """These arms' share of the loading time, over all attempts so far."""
    validation_seconds: float
    """These arms' share of the time of scoring on the way."""
    selected: Selected

    def carry_over(self, run: PackRun, *, times: TrainingTimes, schedule: CheckpointSchedule) -> None:
        """Emit the earlier records again, so that this attempt's folder is complete by itself."""
        for record in self.records:
            if isinstance(record, Outcome):
                run.end(record)
            else:
                run.emit(record)
            if isinstance(record, PackStep):
                times.carry(record)
        times.load_seconds, times.validation_seconds = self.load_seconds, self.validation_seconds
        schedule.num_checkpoints, schedule.seconds = self.num_checkpoints, self.checkpoint_seconds


def find_resumption(
    run: PackRun, *, arms: Sequence[TrainingArm], environment: Environment, engine: str, num_steps: int
) -> Resumption | None:
    """The resumption from the newest checkpoint that fits, or None. Emits an incident about the choice."""
    obstacles = []
    for folder in _checkpoints(run):
        try:
            checkpoint = read_checkpoint(folder)
            records = _records_of(folder, checkpoint)
        except DamagedError as error:
            run.emit(Incident(kind="checkpoint_damaged", message=f"{error}; the one before it is tried"))
            continue
        except OtherVersionError as error:
            obstacles.append(str(error))
            continue
        obstacle = _obstacle(checkpoint, arms=arms, environment=environment, engine=engine)
        if obstacle is not None:
            obstacles.append(obstacle)
            continue
        resumption = _resumption(checkpoint, records, arms=arms, num_steps=num_steps)
        step = max((arm.num_steps_done for arm in resumption.state.arms), default=0)
        if run.pack.reason is not None or not (run.pack.rungs or run.pack.begun):  # as planned is no incident
            message = f"{_because(run)}it goes on from the checkpoint after step {step} of {attempt_name(folder.parents[1])}"
            run.emit(Incident(kind="resumed", message=message, step=step))
        return resumption
    if run.pack.reason is not None or run.pack.begun or obstacles:
        why = obstacles[0] if obstacles else "there is no checkpoint to go on from"
        run.emit(Incident(kind="not_resumed", message=f"{_because(run)}it starts anew, since {why}"))
    return None


def _checkpoints(run: PackRun) -> Iterator[Path]:
    for earlier in run.pack.resume_from:
        yield from checkpoint_folders((run.folder / earlier).resolve() / CHECKPOINTS_NAME)


def _records_of(folder: Path, checkpoint: Checkpoint) -> list[Record]:
    path = folder.parents[1] / RECORDS_NAME
    try:
        return read_records(path, num_bytes=checkpoint.notes["records_bytes"])
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path}: damaged before the end of {folder.name}: {error}") from error


def _obstacle(
    checkpoint: Checkpoint, *, arms: Sequence[TrainingArm], environment: Environment, engine: str
) -> str | None:
    """The reason why resuming would change the bits, or None if it would not."""
    then, now = checkpoint.notes["environment"], asdict(environment)
    differing = [f"{key} was {then.get(key)} and is {now[key]}" for key in now if then.get(key) != now[key]]
    if differing:
        return f"the environment of its checkpoint differs: {', '.join(differing)}"
    if checkpoint.state.engine != engine:
        return f"its checkpoint is of the engine {checkpoint.state.engine}, not {engine}"
    missing = {arm.experiment_id for arm in arms} - {arm.experiment_id for arm in checkpoint.state.arms}
    if missing:
        return f"its checkpoint lacks {', '.join(sorted(missing))}"
    return None


def _resumption(
    checkpoint: Checkpoint, records: Sequence[Record], *, arms: Sequence[TrainingArm], num_steps: int
) -> Resumption:
    ids = [arm.experiment_id for arm in arms]
    cost: Any = checkpoint.notes["checkpoints"]
    share = len(ids) / len(checkpoint.state.arms)  # these arms' share, as for the times of steps
    kept = (part_of(record, frozenset(ids), num_steps=num_steps) for record in records)
    return Resumption(
        state=checkpoint.state.of(ids),
        records=tuple(record for record in kept if record is not None),
        num_checkpoints=cost["num_checkpoints"],
        checkpoint_seconds=cost["seconds"],
        load_seconds=share * checkpoint.notes.get("load_seconds", 0.0),
        selected=checkpoint.selected.of(ids),
        validation_seconds=share * checkpoint.notes.get("validation_seconds", 0.0),
    )


def part_of(record: Record, ids: frozenset[str], *, num_steps: int) -> Record | None:
    """The part of a record that concerns these experiments. None if no part does, or if this attempt emits it anew."""
    if isinstance(record, PackStep):
        arms = tuple(arm for arm in record.arms if arm.experiment_id in ids)
        if not arms:
            return None
        share = len(arms) / len(record.arms)  # an arm's time is the pack's time divided by its number of arms
        return replace(
            record,
            arms=arms,
            num_tokens=record.num_tokens * len(arms) // len(record.arms),
            num_completion_tokens=record.num_completion_tokens * len(arms) // len(record.arms),
            num_steps=num_steps,
            seconds=record.seconds * share,
        )
    if isinstance(record, Incident):
        return record
    if isinstance(record, Score) and not (record.split.endswith("_before") or is_on_the_way(record.split)):
        return None
    if isinstance(record, ArmProfile | Outcome | Score):
        return record if record.experiment_id in ids else None
    return None


def _because(run: PackRun) -> str:
    return "" if run.pack.reason is None else f"{run.pack.reason}; "
