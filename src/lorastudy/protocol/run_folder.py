"""Names inside a run folder, which holds one attempt at a pack: `<runs>/pack-0123/attempt-1`.

`records` and `jobs` name the files that the control side and the worker exchange there.
"""

from pathlib import Path

CHECKPOINTS_NAME = "checkpoints"
_PREFIX = "checkpoint-"


def attempt_name(run_folder: Path) -> str:
    """The last two parts of a run folder's path: `pack-0123/attempt-1`. The rest is the user's choice."""
    return "/".join(run_folder.parts[-2:])


def adapter_path(experiment_id: str) -> str:
    """The path of an adapter relative to its run folder."""
    return f"adapters/{experiment_id}"


def checkpoint_folder(run_folder: Path, num_steps: int) -> Path:
    """The folder of the checkpoint after `num_steps` recorded steps."""
    return run_folder / CHECKPOINTS_NAME / f"{_PREFIX}{num_steps:08d}"


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """The completely written checkpoints, newest first. Their content is not checked."""
    return sorted(
        (path for path in checkpoints.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()),
        reverse=True,
    )
