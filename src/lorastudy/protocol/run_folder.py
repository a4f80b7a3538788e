"""Names inside a run folder, which holds one attempt at a pack: `<runs>/pack-0123/attempt-1`.

The files that the two sides exchange there are named in `records` and `jobs`.
"""

from pathlib import Path

CHECKPOINTS_NAME = "checkpoints"
_PREFIX = "checkpoint-"


def attempt_name(run_folder: Path) -> str:
    """The run folder without the folders around it, which are the user's own: `pack-0123/attempt-1`."""
    return "/".join(run_folder.parts[-2:])


def adapter_path(experiment_id: str) -> str:
    """Where in its run folder a worker puts an adapter."""
    return f"adapters/{experiment_id}"


def checkpoint_folder(run_folder: Path, num_steps: int) -> Path:
    """The folder of the checkpoint after so many recorded steps."""
    return run_folder / CHECKPOINTS_NAME / f"{_PREFIX}{num_steps:08d}"


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """The checkpoints that were written to their end, newest first. Their content is not checked."""
    return sorted(
        (path for path in checkpoints.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()),
        reverse=True,
    )
