"""An open database with the schema of this version: one connection, one transaction at a time.

While it is written, an SQLite store has a write-ahead log, `synchronous=FULL` and foreign keys. A committed transaction
survives a power cut, and readers never wait. At rest the store is one plain file, which you can copy, mail, and read
from a read-only folder.

Opening for reading creates nothing and changes nothing. Opening for writing takes the writer's lock, and creates the
database, or backs it up and upgrades it. Alembic is imported only for an upgrade.

A backup can be taken while the store is in use. The copy gets its name only after it is checked.
"""

import contextlib
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    create_engine,
    event,
    insert,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, DatabaseError, DataError, IntegrityError, ProgrammingError
from sqlalchemy.pool import NullPool

from lorastudy.errors import StoreError
from lorastudy.places import DATABASE
from lorastudy.protocol.files import replacing, sync_file, sync_folder
from lorastudy.store.lock import FileLock, Holder, lock_server
from lorastudy.store.rows import DamageError
from lorastudy.store.schema import HEAD_REVISION, UNRELEASED_REVISIONS, VERSION_TABLE, metadata, version

#: How long a write waits for another writing process before it fails.
LOCK_TIMEOUT_SECONDS = 30


class UnreleasedStoreError(StoreError):
    """The store is from before the first release. Its run folders can be rebuilt; its tables are not read."""


class Database:
    """Owns the connection. Use it only through `reading` and `writing`.

    Raises:
        StoreError: there is no store, it is not one of ours, a newer version wrote it, or another process writes it.
    """

    def __init__(self, database: str | Path, *, writable: bool) -> None:
        self._writable = writable
        url = _url_of(database)
        self._file = Path(url.database) if url.drivername.startswith("sqlite") and url.database else None
        self.name = str(self._file) if self._file else url.render_as_string(hide_password=True)
        if self._file and not writable and not self._file.is_file():
            raise StoreError(
                f"{self._file}: there is no results store here. `lorastudy suite FILE` or `lorastudy demo` makes one; "
                "or name the file of another."
            )
        self._closing = contextlib.ExitStack()
        #: The dead process whose lock file was found; None in the ordinary case.
        self.left_behind: Holder | None = None
        self._is_checked = self._is_together = False
        try:
            self._open(url)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def reading(self, *, checked: bool = True) -> Iterator[Connection]:
        """A transaction that sees one state of the store throughout.

        The first one checks that every row can be reached through every index; a query would leave out the other rows.
        The check takes 2 ms per MB. It finds missing rows, which the rows' hashes cannot.
        """
        with self._own_errors(), self._connection.begin() as transaction:
            try:
                if checked:
                    self._check()
                yield self._connection
            finally:
                # Not a commit: it would fail again after a broken page.
                transaction.rollback()

    @contextlib.contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[Connection]:
        """A transaction that is on disk when the block ends.

        Without `durable` it survives a crash of the process but may be lost in a power cut, and costs a tenth. That
        suits optimizer steps, which a run folder does not sync one by one either.
        """
        if not self._writable:
            raise StoreError(f"{self.name} is open for reading only; open it with writable=True")
        if self._is_together:
            yield self._connection
            return
        self._set_durability(durable=durable)
        with self._own_errors(), self._connection.begin():
            self._check()
            if self._file is None and not durable:
                self._connection.execute(text("SET LOCAL synchronous_commit TO off"))
            yield self._connection
        self._check_that_it_is_there()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Within the block all writes are one transaction: on disk at its end, or lost as a whole if it fails."""
        with self.writing():
            self._is_together = True
            try:
                yield
            finally:
                self._is_together = False

    def close(self) -> None:
        """Close the connection. Leave one plain file, unless another process still has it open."""
        self._closing.close()

    @contextlib.contextmanager
    def undecoded(self) -> Iterator[None]:
        """Within the block, text that is no longer UTF-8 is read as it is, without an error."""
        if self._file is None:
            yield
            return
        self._sqlite.text_factory = lambda raw: raw.decode(errors="surrogateescape")
        try:
            yield
        finally:
            self._sqlite.text_factory = str

    def _open(self, url: URL) -> None:
        if self._file and self._writable:
            self._guard(self._file)
        elif self._file:
            _finish_what_a_crash_left(self._file)
        engine = (
            _server_engine(url) if self._file is None else _file_engine(self._file, writable=self._writable)
        )
        self._closing.callback(engine.dispose)
        try:
            self._connection = self._closing.enter_context(engine.connect())
        except DatabaseError as error:
            raise StoreError(f"{self.name}: cannot be opened: {error.orig}") from error
        if self._file is None and self._writable:
            with self._own_errors(), self._connection.begin():
                lock_server(self._connection, name=self.name)
        self._settle()
        if self._file and self._writable:
            self._inode = self._file.stat().st_ino
            self._closing.callback(self._make_plain)

    def _guard(self, file: Path) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{file.parent}: the results store cannot be made here: {error.strerror}"
            ) from error
        lock = FileLock(file)
        self._closing.callback(lock.release)
        self.left_behind = lock.left_behind

    def _make_plain(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._sqlite.execute("PRAGMA busy_timeout = 0")
            self._sqlite.execute("PRAGMA journal_mode = DELETE")

    def _settle(self) -> None:
        with self._own_errors(), self._connection.begin():
            revision = _revision(self._connection, name=self.name)
            if revision is None and self._writable:
                _create(self._connection)
            elif revision != HEAD_REVISION:
                self._upgrade(revision)
        if self._file and self._writable:
            # A locked file keeps its journal mode, which is slower and just as safe.
            with contextlib.suppress(sqlite3.OperationalError):
                self._sqlite.execute("PRAGMA journal_mode = WAL")
            # After the upgrade: a migration that rebuilds a table needs foreign keys off, and cannot turn them off
            # itself.
            self._sqlite.execute("PRAGMA foreign_keys = ON")

    def _upgrade(self, revision: str | None) -> None:
        if revision in UNRELEASED_REVISIONS:
            raise UnreleasedStoreError(_unreleased(self._file, name=self.name, revision=revision))
        from lorastudy.store import migrations

        if revision is not None and revision not in migrations.known_revisions():
            raise StoreError(
                f"{self.name} was written by a newer version (its revision {revision} is not known here): "
                "upgrade lorastudy: pip install --upgrade lorastudy"
            )
        if not self._writable:
            state = "is empty" if revision is None else f"has the older revision {revision}"
            raise StoreError(
                f"{self.name} {state}: `lorastudy db upgrade` brings it up to date (a backup is made first), and so does "
                "the next suite that writes it"
            )
        if self._file and revision is not None:
            back_up(self._file, kind=revision)
        migrations.upgrade(self._connection)

    def problems(self) -> list[str]:
        """The findings of SQLite's own integrity check; empty for a sound file, and for a server."""
        if self._file is None:
            return []
        found = [str(row[0]) for row in self._connection.exec_driver_sql("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    def _check(self) -> None:
        if not self._is_checked:
            found = self.problems()
            if found:
                raise DamageError(found[0])
            self._is_checked = True

    def _check_that_it_is_there(self) -> None:
        """Check that the SQLite file was not removed or replaced while open.

        Such a file still takes writes, and they are lost.
        """
        if self._file is None:
            return
        try:
            is_there = self._file.stat().st_ino == self._inode
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise StoreError(
                f"{self._file} was removed or replaced while it was being written. What the workers wrote is still in the "
                "run folders, if those are there: `lorastudy db rebuild` makes the store again from them"
            )

    def _set_durability(self, *, durable: bool) -> None:
        if self._file:
            # NORMAL is safe only with a write-ahead log, so a file without one stays at FULL.
            in_wal = self._sqlite.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            self._sqlite.execute(f"PRAGMA synchronous = {'NORMAL' if in_wal and not durable else 'FULL'}")

    @property
    def _sqlite(self) -> sqlite3.Connection:
        driver = self._connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        return driver

    @contextlib.contextmanager
    def _own_errors(self) -> Iterator[None]:
        """Turn database errors into a `StoreError` with the store's name and without SQL. Our own mistakes pass."""
        try:
            yield
        except (IntegrityError, ProgrammingError, DataError):
            raise
        except DatabaseError as error:
            raise StoreError(f"{self.name}: {error.orig}") from error
        except (DamageError, UnicodeDecodeError) as error:
            raise StoreError(
                f"{self.name} is damaged: {error}. `lorastudy doctor` names all that is damaged, `lorastudy db rebuild` "
                "mends it from the run folders"
            ) from error


def _url_of(database: str | Path) -> URL:
    if "://" not in str(database):
        return URL.create("sqlite", database=str(database))
    try:
        url = make_url(str(database))
    except ArgumentError as error:
        raise StoreError(
            f"{database} is not a database URL: postgresql://user@host/name, or a path"
        ) from error
    if url.get_backend_name() not in {"sqlite", "postgresql"} or (
        url.drivername == "sqlite" and not url.database
    ):
        raise StoreError(f"{url}: results are stored in an SQLite file or in PostgreSQL")
    return url


def _server_engine(url: URL) -> Engine:
    try:
        # REPEATABLE READ: a transaction of several reads sees one state, as in SQLite.
        return create_engine(url, poolclass=NullPool, isolation_level="REPEATABLE READ")
    except ModuleNotFoundError as error:
        raise StoreError(
            f"{url}: the driver {error.name} is not installed: pip install 'psycopg[binary]' and write postgresql+psycopg://"
        ) from error


def _file_engine(file: Path, *, writable: bool) -> Engine:
    uri = f"{file.absolute().as_uri()}?mode={'rwc' if writable else 'ro'}"

    def connect() -> sqlite3.Connection:
        # isolation_level None: we begin transactions ourselves, so that they include DDL.
        return sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None)

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
    # A writer takes its lock at once: upgrading a read lock fails instead of waiting.
    begin = "BEGIN IMMEDIATE" if writable else "BEGIN"
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _finish_what_a_crash_left(file: Path) -> None:
    """Undo the unfinished transaction of a dead writer. A reader cannot open the file before that.

    If this process may not write either, opening the file raises the error.
    """
    if file.with_name(f"{file.name}-journal").exists():
        uri = f"{file.absolute().as_uri()}?mode=rw"
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT_SECONDS)) as connection,
        ):
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()


def _create(connection: Connection) -> None:
    """Make the tables of this version in an empty database."""
    metadata.create_all(connection)
    version.create(connection)
    connection.execute(insert(version).values(version_num=HEAD_REVISION))


def _unreleased(file: Path | None, *, name: str, revision: str) -> str:
    """Why a store from before the first release is refused, and which command rebuilds it."""
    what = (
        f"{name} was made before the first release (revision {revision}), and this version does not read it"
    )
    if file is None:
        return (
            f"{what}: name an empty database; `lorastudy db rebuild --database {DATABASE}` makes a store in a "
            "file from the run folders"
        )
    return (
        f"{what}. Make it again from the run folders; the old file is kept beside it:\n"
        f"  lorastudy db rebuild --database {shlex.quote(str(file))} --runs-dir {shlex.quote(str(file.parent / 'runs'))}"
    )


def _revision(connection: Connection, *, name: str) -> str | None:
    """The database's revision; None for an empty database."""
    tables = inspect(connection).get_table_names()
    if VERSION_TABLE in tables:
        return str(connection.execute(select(version.c.version_num)).scalar_one())
    if tables:
        raise StoreError(
            f"{name} is a database of something else (it holds {', '.join(tables[:3])}): name another"
        )
    return None


def back_up(file: Path, *, kind: str) -> Path:
    """Copy the store to its `free_name` beside it; return the path.

    Raises:
        StoreError: the copy cannot be written, or the store is damaged, so its copy would be, too.
    """
    target = free_name(file, kind=kind)
    write_copy(file, target)
    return target


def free_name(file: Path, *, kind: str) -> Path:
    """`<file>.<kind>.backup` beside the file, with a number if that name is taken."""
    name, number = file.with_name(f"{file.name}.{kind}.backup"), 1
    while name.exists():
        number += 1
        name = file.with_name(f"{file.name}.{kind}.{number}.backup")
    return name


def write_copy(file: Path, target: Path) -> None:
    """Write a verified copy. The target gets its name only when it is whole and on disk.

    Raises:
        StoreError: as `back_up`.
    """
    try:
        with replacing(target) as fresh:
            with (
                contextlib.closing(_opened(file, mode="ro")) as source,
                contextlib.closing(sqlite3.connect(fresh)) as made,
            ):
                # SQLite's own backup includes the write-ahead log; copying the file would not.
                source.backup(made)
                problems = [row[0] for row in made.execute("PRAGMA integrity_check")]
            if problems != ["ok"]:
                raise StoreError(
                    f"{file} is damaged ({problems[0]}): see `lorastudy doctor`; no backup was made"
                )
            sync_file(fresh)
        sync_folder(target.parent)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{target}: the backup could not be written: {error}") from error


def _opened(file: Path, *, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode={mode}", uri=True)
