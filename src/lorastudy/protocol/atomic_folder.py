"""A folder that is whole or not there, and that says so itself when it has rotted.

Written under another name with a manifest of every file's size and SHA-256, synced to disk, then renamed: whoever
is killed on the way leaves a folder that no reader looks at. Reading checks every byte against the manifest and
hands out just what was checked.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorastudy.suite.experiment import canonical_json

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1


class DamagedError(Exception):
    """A folder is not what was sealed; the message names the file and what is wrong with it."""


def seal(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files and their manifest as `folder`, which must not exist yet.

    Raises:
        OSError: it could not be written; then nothing is left of it.
    """
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        for name, content in {**files, MANIFEST_NAME: _manifest(files)}.items():
            _write(fresh / name, content)
        sync_folder(fresh)
        fresh.rename(folder)
    except OSError:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def unseal(folder: Path) -> dict[str, bytes]:
    """The files of a sealed folder by name.

    Raises:
        DamagedError: a file is missing, torn or changed.
    """
    files = {}
    for name, expected in manifest_of(folder).items():
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise DamagedError(f"{folder / name}: {error.strerror or error}") from error
        if len(content) != expected["bytes"]:
            raise DamagedError(f"{folder / name}: has {len(content)} bytes instead of {expected['bytes']}")
        if hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise DamagedError(f"{folder / name}: does not match its SHA-256")
        files[name] = content
    return files


def manifest_of(folder: Path) -> dict[str, Any]:
    """Size and SHA-256 by file, held against the manifest's own checksum.

    Raises:
        DamagedError: the manifest is missing or damaged.
    """
    path = folder / MANIFEST_NAME
    try:
        outer = json.loads(path.read_bytes())
        files: dict[str, Any] = outer["files"]
        if outer["format"] != FORMAT_VERSION:
            raise DamagedError(f"{path}: format {outer['format']} is not known here")
        if outer["sha256"] != _checksum(files):
            raise DamagedError(f"{path}: does not match its own SHA-256")
    except OSError as error:
        raise DamagedError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path}: torn or damaged") from error
    return files


def sync_tree(folder: Path) -> None:
    """Wait until all files under the folder, and their names, are on disk."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk; a system that cannot (Windows) does so in its own time."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest(files: Mapping[str, bytes]) -> bytes:
    entries = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    body = {"format": FORMAT_VERSION, "sha256": _checksum(entries), "files": entries}
    return json.dumps(body, indent=1).encode()


def _checksum(files: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json([FORMAT_VERSION, files]).encode()).hexdigest()


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
