"""Checkpoints: an engine's state as files, and back to the very same bits.

    checkpoint-<n>/
      state.json            numbers, and what the caller wants to remember
      tensors.safetensors   every tensor, as `<place of the arm>/<its name>`
      manifest.json         size and SHA-256 of both

Nothing is pickled. Each folder is sealed (`lorastudy.protocol.atomic_folder`): whole or not there, and checked to the last byte
before any of it is used. Two are kept, so that one that has rotted leaves the one before it.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from lorastudy.engine.state import ArmState, EngineState
from lorastudy.protocol.atomic_folder import DamagedError, seal, unseal
from lorastudy.protocol.checkpoints import checkpoint_folders

NUM_KEPT = 2
STATE_NAME = "state.json"
TENSORS_NAME = "tensors.safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An engine's state with what the caller remembers beside it, as plain JSON values."""

    state: EngineState
    notes: Mapping[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> int:
    """Write it and let go of all but the newest in the same place; return its bytes.

    Raises:
        OSError: it could not be written; those before it stay.
    """
    files = _files(checkpoint)
    seal(folder, files)
    for old in checkpoint_folders(folder.parent)[NUM_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return sum(map(len, files.values()))


def read_checkpoint(folder: Path) -> Checkpoint:
    """What `write_checkpoint` wrote, on the CPU.

    Raises:
        DamagedError: anything about it is not as it was written.
    """
    files = unseal(folder)
    try:
        body = json.loads(files[STATE_NAME])
        tensors = load(files[TENSORS_NAME])
        arms = tuple(_arm(number, values, tensors=tensors) for number, values in enumerate(body.pop("arms")))
        notes = body.pop("notes")
        body.pop("racing", None)  # always empty, in checkpoints of a version that had a place for it
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
