"""Atomic files and folders, and the handling of disk errors.

`replacing` replaces one file. `write_sealed_folder` writes a folder with a manifest of every file's size and SHA-256,
so that a reader can detect damage later. Both write under another name and then rename: a killed process leaves nothing
under the final name.

Every line that writes can raise a disk error (full, read-only, failing). It is caught only at the edge of each process:
the command line shows one message, and a worker exits with its own code, so that the suite stops instead of counting a
failed experiment.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lorastudy.suite.experiment import canonical_json

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1

#: The exit code of a worker that could not write: `EX_IOERR` of BSD's sysexits.h.
DISK_FAULT_EXIT_CODE = 74

_CAUSES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "writing is not permitted",
    errno.EPERM: "writing is not permitted",
    errno.EIO: "the disk fails",
    errno.ESTALE: "the network file system was cut off",
}


class DamagedError(Exception):
    """A sealed folder is damaged. The message names the file and the problem."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new path beside `path` to write to. At the end of the block the new file is renamed to `path`.

    Readers see either the old file or the whole new one. After an error the old file stays and the new one is removed.
    """
    fresh = path.with_name(f"{path.name}.partial")
    fresh.unlink(missing_ok=True)  # it may be a link to a file that is not ours
    try:
        yield fresh
        fresh.replace(path)
    finally:
        with suppress(OSError):  # the first error is the one to report
            fresh.unlink(missing_ok=True)


def write_sealed_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files and their manifest as `folder`, which must not exist yet.

    Raises:
        OSError: the folder could not be written. No part of it remains.
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


def read_sealed_folder(folder: Path) -> dict[str, bytes]:
    """The files of a sealed folder, by name. Every byte is checked against the manifest.

    Raises:
        DamagedError: a file is missing, truncated or changed.
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
    """Size and SHA-256 by file, checked against the manifest's own checksum.

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


def sync_tree(folder: Path) -> None:
    """Wait until all files under the folder, and their names, are on disk."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)


def sync_file(path: Path) -> None:
    """Wait until a file's content is on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk. Windows has no such call and needs none."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_disk_fault(error: BaseException) -> bool:
    """Whether the disk caused the error, not the program."""
    return isinstance(error, OSError) and error.errno in _CAUSES


def disk_fault_message(error: OSError) -> str:
    """A message with the cause, the file and the fix."""
    assert error.errno is not None
    file = error.filename2 or error.filename  # for calls with two files, the second is the target
    where = f"{file}: " if file else ""
    return (
        f"{where}{_CAUSES[error.errno]} ({error.strerror}). What was stored before is kept. Mend the disk, then run the same "
        "command again: it goes on with what is missing"
    )


def exit_code_of(serve: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """The exit code of a worker's `main`. If the disk fails, log one line and return `DISK_FAULT_EXIT_CODE`."""
    try:
        return serve(arguments)
    except OSError as error:
        if not is_disk_fault(error):
            raise
        # The log may be on the same disk. Then the runner sees only the exit code.
        with suppress(OSError):
            print(disk_fault_message(error), file=sys.stderr, flush=True)
        return DISK_FAULT_EXIT_CODE
