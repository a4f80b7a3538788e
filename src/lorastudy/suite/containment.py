"""Checks that names and links do not lead out of the folder in which they are used."""

from pathlib import Path

from lorastudy.errors import StudyError


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
