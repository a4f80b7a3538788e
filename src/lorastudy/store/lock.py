"""One writer: the process that writes a store holds its lock.

A second writer gets an error at once that names the first. An SQLite file has a lock file beside it
(`experiments.db.lock`) that names the holder. The system's lock on that file (`flock`) keeps others out. It ends with
the process, however that dies, so a lock file without a lock is certainly left over. A server guards its database with
an advisory lock that ends with the session. The session's `application_name` names the holder.

One case is uncertain: a lock file that another machine left on a shared folder, because not every network file system
shares locks. Writing is then refused, and the message names the file to remove.
"""

import dataclasses
import fcntl
import json
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from sqlalchemy import Connection, text

from lorastudy.errors import StoreError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The holder of a lock: a process, its machine, and its start of holding."""

    pid: int
    host: str
    since: str
    boot_id: str | None = None
    """Identifies the running kernel. Two containers on one machine have different host names but the same boot id."""

    @classmethod
    def here(cls) -> Self:
        """This process as the holder from now on."""
        boot_id = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else None
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(pid=os.getpid(), host=socket.gethostname(), since=since, boot_id=boot_id)

    def is_of_this_machine(self) -> bool:
        """Whether the holder ran on the machine of this process."""
        here = Holder.here()
        return self.host == here.host or (self.boot_id is not None and self.boot_id == here.boot_id)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class FileLock:
    """Holds a lock file from construction until `release`.

    `left_behind` is the holder that died without releasing it; None in the ordinary case.

    Raises:
        StoreError: another process holds the lock, another machine left it, or the file cannot be made.
    """

    def __init__(self, guarded: Path) -> None:
        self._guarded = guarded
        self._path = guarded.with_name(f"{guarded.name}.lock")
        try:
            self._descriptor = self._take()
        except BlockingIOError:
            raise StoreError(_refusal(str(guarded), _read(self._path))) from None
        except OSError as error:
            raise StoreError(
                f"{self._path}: the results store cannot be written: {error.strerror}"
            ) from error
        self.left_behind = _read(self._path)
        if self.left_behind is not None and not self.left_behind.is_of_this_machine():
            os.close(self._descriptor)
            raise StoreError(
                f"{guarded} is being written by {self.left_behind}, or was when that machine went away. If nothing runs "
                f"there any more, remove {self._path} and try again"
            )
        self._name_holder()

    def release(self) -> None:
        """Remove the file and give up the lock. Calling it again does nothing."""
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def _take(self) -> int:
        """The descriptor of the locked file. It is the file with the lock's name now.

        A file that was unlinked in the meantime guards nothing, so it is opened again.
        """
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), self._path.stat()):
                    return descriptor
            except FileNotFoundError:
                pass
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _name_holder(self) -> None:
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(dataclasses.asdict(Holder.here())).encode(), 0)
        except OSError as error:
            self.release()
            raise StoreError(
                f"{self._path}: the results store cannot be written: {error.strerror}"
            ) from error


def lock_server(connection: Connection, *, name: str) -> None:
    """Take the advisory lock of a PostgreSQL schema for as long as the connection lasts.

    Raises:
        StoreError: another session holds it.
    """
    here = Holder.here()
    # PostgreSQL keeps 63 bytes. The host is last, because only it may be long.
    label = f"lorastudy {here.pid} {here.since} {here.host}"[:63]
    connection.execute(text("SELECT set_config('application_name', :label, false)"), {"label": label})
    if not connection.execute(text(f"SELECT pg_try_advisory_lock({_KEY})")).scalar_one():
        held_as = connection.execute(text(_LABEL_OF_HOLDER)).scalar_one_or_none()
        raise StoreError(_refusal(name, _holder_of(held_as or "")))


#: Two integers: the first identifies lorastudy, the second the schema.
_KEY = "77239103, hashtext(current_schema())"
_LABEL_OF_HOLDER = """
SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid)
WHERE locktype = 'advisory' AND granted AND classid = 77239103
  AND objid = (hashtext(current_schema())::bigint & 4294967295)::oid AND database = (
    SELECT oid FROM pg_database WHERE datname = current_database())
"""


def _refusal(name: str, holder: Holder | None) -> str:
    who = str(holder) if holder else "another process"
    return (
        f"{name} is being written by {who}. One suite at a time writes a results store: wait for that one or stop it, "
        "or give another --database. Reading it (`lorastudy status`, `lorastudy report`) is always possible"
    )


def _read(path: Path) -> Holder | None:
    """The holder that the file names; None if it names none (yet)."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _holder_of(label: str) -> Holder | None:
    """The holder that a session's `application_name` names."""
    words = label.split(maxsplit=3)
    if len(words) < 4 or words[0] != "lorastudy":
        return None
    return Holder(pid=int(words[1]), since=words[2], host=words[3])
