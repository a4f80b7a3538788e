"""Checkpoints of a pack: write an engine's state to files and read it back with the same bits.

    checkpoint-<n>/
      state.json            numbers, and the caller's notes
      tensors.safetensors   every tensor, as `<index of the arm>/<name of the tensor>`
      manifest.json         size and SHA-256 of both

Nothing is pickled. Each folder is sealed (`protocol/files.py`): it is written whole or not at all, and reading checks
every byte. The newest two are kept, so that the older one is there if the newer one is damaged.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from lorastudy.engine.arms import ArmState, Engine, EngineState
from lorastudy.protocol.files import DamagedError, read_sealed_folder, write_sealed_folder
from lorastudy.protocol.records import Environment, Incident
from lorastudy.protocol.run_folder import checkpoint_folder, checkpoint_folders
from lorastudy.train.outcomes import PackRun
from lorastudy.train.stopping import Stopped
from lorastudy.train.timing import CheckpointSchedule, Stopwatch, TrainingTimes


@dataclass(kw_only=True)
class Checkpointer:
    """Writes the checkpoints of one attempt at a pack. If a write fails, training continues."""

    run: PackRun
    engine: Engine
    environment: Environment
    times: TrainingTimes
    schedule: CheckpointSchedule
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
            checkpoint = Checkpoint(state=self.engine.state(), notes=self._notes())
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
            "rung_seconds": self.times.rung_seconds,
        }


NUM_KEPT = 2

STATE_NAME = "state.json"

TENSORS_NAME = "tensors.safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An engine's state, with the caller's notes as plain JSON values."""

    state: EngineState
    notes: Mapping[str, Any]


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


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, with its tensors on the CPU.

    Raises:
        DamagedError: a file differs from its manifest, or another version wrote it.
    """
    files = read_sealed_folder(folder)
    try:
        body = json.loads(files[STATE_NAME])
        tensors = load(files[TENSORS_NAME])
        arms = tuple(_arm(number, values, tensors=tensors) for number, values in enumerate(body.pop("arms")))
        notes = body.pop("notes")
        body.pop("racing", None)  # always empty; an earlier version wrote this key
        return Checkpoint(state=EngineState(arms=arms, **body), notes=notes)
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        # Sealed by another program, or by a version with other fields.
        raise DamagedError(f"{folder}: not a checkpoint of this version: {error}") from error


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
        "notes": checkpoint.notes,
    }
    return {STATE_NAME: json.dumps(body).encode(), TENSORS_NAME: save(tensors)}


def _arm(number: int, values: Mapping[str, Any], *, tensors: Mapping[str, Any]) -> ArmState:
    return ArmState(
        **{**values, "tensors": {name: tensors[f"{number}/{name}"] for name in values["tensors"]}}
    )
