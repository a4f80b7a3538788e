"""Where the checkpoints of a run folder lie. What is in them is the engine's affair (`engine/checkpoint.py`)."""

from pathlib import Path

CHECKPOINTS_NAME = "checkpoints"
_PREFIX = "checkpoint-"


def checkpoint_folder(run_folder: Path, number: int) -> Path:
    """The folder of the checkpoint after this many told steps."""
    return run_folder / CHECKPOINTS_NAME / f"{_PREFIX}{number:08d}"


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """The checkpoints that were written to their end, newest first; whether they are sound is not looked at."""
    return sorted(
        (path for path in checkpoints.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()),
        reverse=True,
    )
