"""A PostgreSQL server of one's own: in a temporary folder, reached through a socket in it, gone afterwards.

The programs are those of Debian's package `postgresql` (or of any installation on the path). They refuse to run as
root, so as root they are run as the user `postgres`, which that package makes.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SECONDS_TO_START = 30


def missing() -> str | None:
    """Why there can be no server here; None where there can."""
    if _programs() is None:
        return "PostgreSQL is not installed (Debian: apt install postgresql)"
    if os.geteuid() == 0 and _other_user() is None:
        return "PostgreSQL refuses to run as root, and there is no user postgres"
    return None


@contextmanager
def server() -> Iterator[str]:
    """The server's URL, without a database's name."""
    programs = _programs()
    assert programs is not None
    # a short path: a socket's name may have 107 characters
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    user = _other_user()
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
    data = folder / "data"
    try:
        _run([programs / "initdb", "-D", data, "-A", "trust", "-U", "lorastudy", "--no-sync"], cwd=folder)
        settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
        process = subprocess.Popen(
            [programs / "postgres", "-D", data, *settings],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **_as_other_user(),
        )  # fmt: skip
        try:
            _wait(programs, folder)
            yield f"postgresql+psycopg://lorastudy@/{{name}}?host={folder}"
        finally:
            process.terminate()
            process.wait(timeout=SECONDS_TO_START)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def create_database(url: str, name: str) -> str:
    """Make an empty database and return its URL."""
    import psycopg

    plain = url.format(name="postgres").replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return url.format(name=name)


def _programs() -> Path | None:
    """The folder of `initdb` and `postgres`; Debian keeps it off the path."""
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True
    )
    found = shutil.which("initdb")
    folders += [Path(found).resolve().parent] if found else []
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def _other_user() -> pwd.struct_passwd | None:
    """Who runs the server where this process is root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return None


def _as_other_user() -> dict[str, object]:
    user = _other_user()
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _run(command: Sequence[object], *, cwd: Path) -> None:
    subprocess.run(
        [str(part) for part in command], check=True, capture_output=True, cwd=cwd, **_as_other_user()
    )


def _wait(programs: Path, folder: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    command = [programs / "pg_isready", "-h", folder, "-U", "lorastudy"]
    while subprocess.run(command, capture_output=True, check=False).returncode != 0:
        assert time.monotonic() < end, "the server does not start"
        time.sleep(0.1)
