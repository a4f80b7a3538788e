"""Names and links cannot lead out of the folder in which they are used."""

from pathlib import Path

from lorastudy.errors import StudyError


def inside(folder: Path, path: Path) -> Path:
    """The path, which lies in the folder, links followed.

    Raises:
        StudyError: it leads out.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise StudyError(
            f"{path}: leads out of {folder}, to {path.resolve()}; remove the link, or name another folder"
        )
    return path


def files_alone(folder: Path) -> Path:
    """The folder, which holds files and folders and no links, so that copying it copies nothing from elsewhere.

    Raises:
        StudyError: there is a link in it.
    """
    link = next((path for path in folder.rglob("*") if path.is_symlink()), None)
    if link is not None:
        raise StudyError(f"{link}: is a link; an adapter holds files alone")
    return folder
