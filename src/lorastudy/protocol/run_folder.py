"""Names inside a run folder, which holds one attempt at a pack: `<runs>/pack-0123/attempt-1`.

`records` and `jobs` name the files that the control side and the worker exchange there. This module also checks
that no link leads out of a folder.
"""

from pathlib import Path

from lorastudy.errors import StudyError

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


def inside(folder: Path, path: Path) -> Path:
    """The path, after a check that it lies in the folder once links are followed.

    Raises:
        StudyError: the path leads out of the folder.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise StudyError(
            f"{path}: leads out of {folder}, to {path.resolve()}; remove the link, or name another folder"
        )
    return path


def files_alone(folder: Path) -> Path:
    """The folder, after a check that it holds no links, so that a copy of it contains nothing from elsewhere.

    Raises:
        StudyError: the folder holds a link.
    """
    link = next((path for path in folder.rglob("*") if path.is_symlink()), None)
    if link is not None:
        raise StudyError(f"{link}: is a link; an adapter holds files alone")
    return folder
