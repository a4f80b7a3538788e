"""An open database, brought to the schema of this version: one connection, one transaction at a time.

While it is written, an SQLite store has a write-ahead log, `synchronous=FULL` and foreign keys, so a committed transaction
survives a power cut and readers never wait. At rest it is one plain file without companions, which you can copy, mail, and
read from a folder that you may not write to.

Opening for reading creates nothing and changes nothing. Opening for writing takes the writer's lock, and creates the
database, or backs it up and upgrades it. Alembic is imported only for an upgrade.

A backup can be taken while the store is in use. The copy is checked, and only then given its name.
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
from lorastudy.protocol.files import replacing, sync_file, sync_folder
from lorastudy.store.lock import FileLock, Holder, lock_server
from lorastudy.store.rows import DamageError
from lorastudy.store.schema import HEAD_REVISION, UNRELEASED_REVISIONS, VERSION_TABLE, metadata, version

#: How long a write waits for another process that is writing, before it gives up.
LOCK_TIMEOUT_SECONDS = 30


class UnreleasedStoreError(StoreError):
    """The store was made before the first release: its run folders rebuild, its tables are not read."""


class Database:
    """Owns the connection. `reading` and `writing` are the only ways to it.

    Raises:
        StoreError: there is no store, it is not one of ours, a newer version wrote it, or somebody else writes it.
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
        #: The process whose lock was found without its holder, None in the ordinary case.
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

        The first one looks through the file: whether every row can be reached through every index, without which
        a query leaves rows out. That takes 2 ms per MB, and finds what the rows' hashes cannot: rows that are gone.
        """
        with self._own_errors(), self._connection.begin() as transaction:
            try:
                if checked:
                    self._check()
                yield self._connection
            finally:
                # not a commit, which fails once more where a broken page was met
                transaction.rollback()

    @contextlib.contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[Connection]:
        """A transaction that is on disk when the block ends.

        Without `durable` it is whole after a crash of the process but may be lost in a power cut, and costs
        a tenth: for optimizer steps, which a run folder does not sync one by one either.
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
        """Within the block all writes are one transaction: on disk when it ends, and none of them if it fails."""
        with self.writing():
            self._is_together = True
            try:
                yield
            finally:
                self._is_together = False

    def close(self) -> None:
        """Leave one plain file, unless somebody else still has it open, and let go of it."""
        self._closing.close()

    @contextlib.contextmanager
    def undecoded(self) -> Iterator[None]:
        """Within the block, text that is not UTF-8 any more is read as it stands instead of being an error."""
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
            # a locked file keeps its journal mode, which is slower and just as safe
            with contextlib.suppress(sqlite3.OperationalError):
                self._sqlite.execute("PRAGMA journal_mode = WAL")
            # after the upgrade: a migration that rebuilds a table has it off, and cannot turn it off itself
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
        """What SQLite's own look through the file finds wrong; empty for a sound one, and for a server."""
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
        """An SQLite file that is removed or replaced while it is open takes writes as before, and they are lost."""
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
            # NORMAL is safe with a write-ahead log only, so a file that could not have one stays at FULL
            in_wal = self._sqlite.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            self._sqlite.execute(f"PRAGMA synchronous = {'NORMAL' if in_wal and not durable else 'FULL'}")

    @property
    def _sqlite(self) -> sqlite3.Connection:
        driver = self._connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        return driver

    @contextlib.contextmanager
    def _own_errors(self) -> Iterator[None]:
        """Say which store it is and what the database says, without SQL; but our own mistakes stay loud."""
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
        # REPEATABLE READ: a transaction of several reads sees one state, as it does in SQLite
        return create_engine(url, poolclass=NullPool, isolation_level="REPEATABLE READ")
    except ModuleNotFoundError as error:
        raise StoreError(
            f"{url}: the driver {error.name} is not installed: pip install 'psycopg[binary]' and write postgresql+psycopg://"
        ) from error


def _file_engine(file: Path, *, writable: bool) -> Engine:
    uri = f"{file.absolute().as_uri()}?mode={'rwc' if writable else 'ro'}"

    def connect() -> sqlite3.Connection:
        # isolation_level None: transactions begin when we say so, and hold DDL too
        return sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None)

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
    # a writer takes its lock at once: one that upgrades from a read lock cannot wait, it fails
    begin = "BEGIN IMMEDIATE" if writable else "BEGIN"
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _finish_what_a_crash_left(file: Path) -> None:
    """Undo the transaction that a writer died over: who opens a file for reading alone cannot read it before that.

    Where this process may not write either, the error comes when the file is opened.
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
    """Why a store from before the first release is refused, and which command makes it again."""
    what = (
        f"{name} was made before the first release (revision {revision}), and this version does not read it"
    )
    if file is None:
        return (
            f"{what}: name an empty database; `lorastudy db rebuild --database results/experiments.db` makes a store in a "
            "file from the run folders"
        )
    return (
        f"{what}. Make it again from the run folders; the old file is kept beside it:\n"
        f"  lorastudy db rebuild --database {shlex.quote(str(file))} --runs-dir {shlex.quote(str(file.parent / 'runs'))}"
    )


def _revision(connection: Connection, *, name: str) -> str | None:
    """The revision that is written in the database, None for an empty one."""
    tables = inspect(connection).get_table_names()
    if VERSION_TABLE in tables:
        return str(connection.execute(select(version.c.version_num)).scalar_one())
    if tables:
        raise StoreError(
            f"{name} is a database of something else (it holds {', '.join(tables[:3])}): name another"
        )
    return None


def back_up(file: Path, *, kind: str) -> Path:
    """Copy the store to `<file>.<kind>.backup` beside it, or with a number where that is taken; return where.

    Raises:
        StoreError: the copy cannot be written, or the store is damaged so that a copy of it would be, too.
    """
    target = free_name(file, kind=kind)
    write_copy(file, target)
    return target


def free_name(file: Path, *, kind: str) -> Path:
    """`<file>.<kind>.backup` beside the file, or with a number where that is taken."""
    name, number = file.with_name(f"{file.name}.{kind}.backup"), 1
    while name.exists():
        number += 1
        name = file.with_name(f"{file.name}.{kind}.{number}.backup")
    return name


def write_copy(file: Path, target: Path) -> None:
    """Write a verified copy; nothing stands under the target's name before it is whole and on disk.

    Raises:
        StoreError: as `back_up`.
    """
    try:
        with replacing(target) as fresh:
            with (
                contextlib.closing(_opened(file, mode="ro")) as source,
                contextlib.closing(sqlite3.connect(fresh)) as made,
            ):
                # SQLite's own copy takes what is still in the write-ahead log; copying the file would not
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
