"""One database: connections, transactions, migration, and what its errors mean to us.

Rules:
- Every write transaction begins IMMEDIATE, and on PostgreSQL by taking one lock: writes never overlap. A deferred one
  lets two processes read the same audit head.
- `durable` transactions are synced before `write` returns (SQLite synchronous=FULL); the others survive a killed
  process but may be lost, whole, with the power.
- Nothing of SQLAlchemy's or the driver's escapes: busy, full, read-only and unreachable are `StorageUnavailable`.
- A connection never crosses a fork. A SQLite connection is kept, one for each thread: taking one anew costs as much as
  several look-ups, and two in one thread would throw away each other's pages.
- Nothing is written to a file that is no longer the one of that name.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from estserver.errors import ConfigError, InternalError, StorageUnavailable
from estserver.inventory.prepared import driver
from estserver.inventory.schema import SCHEMA_VERSIONS

_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY: ("the inventory is locked by another process", 2),
    sqlite3.SQLITE_LOCKED: ("the inventory is locked", 2),
    sqlite3.SQLITE_NOMEM: ("there is no memory left for the inventory", 30),
    sqlite3.SQLITE_READONLY: ("the inventory cannot be written: read-only", 60),
    sqlite3.SQLITE_IOERR: ("the inventory's disk failed", 60),
    sqlite3.SQLITE_FULL: ("the inventory's disk is full", 60),
    sqlite3.SQLITE_CANTOPEN: ("the inventory cannot be opened: its directory is read-only, or full", 60),
    sqlite3.SQLITE_PERM: ("the inventory cannot be opened: permission denied", 60),
    sqlite3.SQLITE_AUTH: ("the inventory cannot be opened: permission denied", 60),
    sqlite3.SQLITE_CORRUPT: ("the inventory is damaged: restore it from a backup", 3600),
    sqlite3.SQLITE_NOTADB: ("the inventory is damaged: restore it from a backup", 3600),
}
"""Primary result code of SQLite → what happened, and the seconds after which asking again makes sense."""

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_DOUBTFUL = _DAMAGED | {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY}
"""After these a connection may hold pages that are not, or no longer, on the disk, or stay read-only for ever."""


WRITERS_LOCK = 0x6573746C696E65
"""PostgreSQL's number for the lock that every writer of an inventory takes."""


class _Process:
    """The connections of one process, and the turn of its writers."""

    def __init__(self, url: URL, busy_seconds: float) -> None:
        self.pid = os.getpid()
        self.file = _file_at(url)
        self.engine = _engine(url, busy_seconds)
        # SQLite's own busy handler polls and is unfair; between threads a lock is neither
        self.turn = threading.Lock()
        self._of_thread = threading.local()
        self._kept = weakref.WeakSet[Connection]()

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """Lend a connection: this thread's own, or, where a server is behind it, one from the pool."""
        if self.engine.dialect.name != "sqlite":
            with self.engine.connect() as pooled:
                yield pooled
            return
        connection: Connection | None = getattr(self._of_thread, "connection", None)
        if connection is None:
            connection = self._of_thread.connection = self.engine.connect()
            self._kept.add(connection)
        try:
            yield connection
        except BaseException as error:
            if _primary_code(error) in _DOUBTFUL:
                self._of_thread = threading.local()  # every thread makes a new one
                connection.invalidate()
            elif driver(connection).in_transaction:
                driver(connection).rollback()
            raise
        finally:
            if connection.in_transaction():  # SQLAlchemy thinks so after each of its own statements
                connection.rollback()

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self._kept):
            with suppress(DBAPIError):
                connection.close()
        self._of_thread = threading.local()
        self.engine.dispose()


class Database:
    """An inventory database that has the schema this code works with.

    Args:
        url: where it is; a SQLite URL names a file.
        busy_seconds: how long a writer waits for another process before it gives up.

    Attributes:
        left_open: whether whoever had it before did not close it: it crashed, or still uses it.
    """

    def __init__(self, url: URL, *, busy_seconds: float) -> None:
        self.left_open = _has_journal(url)
        self._url = url
        self._busy_seconds = busy_seconds
        self._process = _Process(url, busy_seconds)
        self._left_behind: list[_Process] = []
        self._check: Callable[[], None] | None = None

    def __str__(self) -> str:
        """Return where it is, without a password."""
        return self._url.database or "" if self.is_sqlite else self._url.render_as_string()

    @property
    def is_sqlite(self) -> bool:
        """Return whether this is a file of our own."""
        return self._url.get_backend_name() == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Look something up; each statement sees one consistent state, and no writer waits for it."""
        mine = self._mine()
        with self._translated(), mine.connected() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Read many statements or rows from one state, on a connection that is in nobody's way."""
        with self._translated(), self._mine().engine.connect() as connection:
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN")
            yield connection

    @contextmanager
    def write(self, *, durable: bool) -> Iterator[Connection]:
        """Write in one transaction, committed when the block ends and rolled back when it raises.

        Raises:
            StorageUnavailable: it could not be begun or committed; nothing was written, as far as is known.
        """
        mine = self._mine()
        with mine.turn, self._translated(), mine.connected() as connection:
            if mine.file != _file_at(self._url):
                raise StorageUnavailable(
                    "the inventory's file was removed or replaced while it was in use",
                    advice="the server's operator has to put it back, or to restart the server",
                    retry_after=timedelta(seconds=60),
                )
            _begin(connection, durable=durable)
            yield connection
            _commit(connection)

    def check_at_first_use(self, check: Callable[[], None]) -> None:
        """Put a check off that cannot be made now: nothing is read or written before it has passed."""
        self._check = check

    def close(self) -> None:
        """Close every connection of this process."""
        self._process.close()

    def _mine(self) -> _Process:
        check, self._check = self._check, None
        if check is not None:
            try:
                check()
            except BaseException:
                self._check = check
                raise
        if self._process.pid != os.getpid():
            # kept, not closed: closing a SQLite handle of the parent's would drop the parent's file locks
            self._left_behind.append(self._process)
            self._process = _Process(self._url, self._busy_seconds)
        return self._process

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what SQLAlchemy or the driver raises into what it means to us."""
        try:
            yield
        except DBAPIError as error:
            _raise_ours(error.orig or error, self._errors())
        except PoolTimeout:
            raise StorageUnavailable("the inventory is busy", retry_after=timedelta(seconds=2)) from None
        except self._errors().Error as error:
            _raise_ours(error, self._errors())

    def _errors(self) -> Any:  # noqa: ANN401 - the driver's module, whose errors PEP 249 names
        return self._process.engine.dialect.loaded_dbapi


def open_database(where: str | Path, *, create: bool, migrate: bool, busy_seconds: float) -> Database:
    """Open a database and bring its schema to the newest version; if it cannot be used just now, at its first use.

    Raises:
        ConfigError: there is none, it is damaged, not an inventory, or newer than this program.
        StorageUnavailable: it is to be made, and cannot.
    """
    url = _url_of(where)
    if url.get_backend_name() == "sqlite":
        _require_file(Path(url.database or ""), create=create)
    database = Database(url, busy_seconds=busy_seconds)
    check = partial(_bring_up_to_date, database, create=create, migrate=migrate)
    try:
        check()
    except BaseException as error:
        if create or not isinstance(error, StorageUnavailable):
            database.close()
            raise
        database.check_at_first_use(check)
    return database


def _url_of(where: str | Path) -> URL:
    if "://" not in str(where):
        return URL.create("sqlite", database=str(where))
    try:
        url = make_url(str(where))
        url.get_dialect()
    except (ArgumentError, NoSuchModuleError, ImportError):
        raise ConfigError(
            "the inventory's URL cannot be used", advice="name a file, or a URL such as postgresql+psycopg://…"
        ) from None
    return url


def _require_file(path: Path, *, create: bool) -> None:
    """Make the file private before SQLite writes to it; its journal files take the same mode."""
    if str(path) in {"", ".", ":memory:"}:
        raise ConfigError("the inventory must be a file")
    try:
        if create and not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        elif not path.is_file():
            raise ConfigError(
                f"{path} does not exist",
                advice="restore the inventory from a backup, or make a new PKI home with: estserver init",
            )
    except OSError as error:
        raise ConfigError(f"{path} cannot be made: {error.strerror}") from None


def _file_at(url: URL) -> tuple[int, int] | None:
    """Return what tells a file from another one of the same name; None when there is none, or no file at all."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    with suppress(OSError):
        found = os.stat(url.database)  # noqa: PTH116 - for every write: no Path is made for it
        return found.st_dev, found.st_ino
    return None


def _has_journal(url: URL) -> bool:
    """Tell whether SQLite's write-ahead log is there, which the last to close a database removes."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return False
    journal = Path(f"{url.database}-wal")
    return journal.exists() and journal.stat().st_size > 0


def _bring_up_to_date(database: Database, *, create: bool, migrate: bool) -> None:
    try:
        with database.read() as connection:
            version = _version(connection, database)
        if version == SCHEMA_VERSIONS[-1]:
            return
        if version is None and not create:
            raise ConfigError(f"{database} holds no inventory", advice="restore it from a backup")
        if not migrate:
            raise ConfigError(f"{database} has schema {version}, this program needs {SCHEMA_VERSIONS[-1]}")
        with database.write(durable=True) as connection:
            _upgrade(connection)
    except StorageUnavailable as error:
        if error.code == "storage-damaged":
            raise damaged(database) from None
        raise


def damaged(database: Database) -> ConfigError:
    """Say that a file cannot be used any more."""
    return ConfigError(f"{database} is damaged or is not a database", advice="restore it from a backup")


def _version(connection: Connection, database: Database) -> str | None:
    """Return the schema's revision, None for an empty database."""
    tables = set(inspect(connection).get_table_names())
    if not tables:
        return None
    if "alembic_version" not in tables:
        raise ConfigError(f"{database} is not an inventory", advice="see [storage] in estserver.toml")
    version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if version not in SCHEMA_VERSIONS:
        raise ConfigError(
            f"{database} was written by a newer version of estserver (schema {version})",
            advice="install that version, or restore a backup made before the upgrade",
        )
    return version


def _upgrade(connection: Connection) -> None:
    from alembic import command  # noqa: PLC0415 - slow to import, and needed once in a database's life
    from alembic.config import Config  # noqa: PLC0415 - as above

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _engine(url: URL, busy_seconds: float) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, hide_parameters=True, pool_pre_ping=True)
    engine = create_engine(
        url,
        hide_parameters=True,
        poolclass=NullPool,
        # no implicit BEGIN by the driver: `write` says which one
        connect_args={"timeout": busy_seconds, "isolation_level": None, "check_same_thread": False},
    )
    event.listen(engine, "connect", _on_connect)
    return engine


def _on_connect(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin(connection: Connection, *, durable: bool) -> None:
    """Begin a write when no other process is in one: what is looked up in it stays true until its end."""
    run = driver(connection).execute
    if connection.dialect.name != "sqlite":  # the driver begins a transaction by itself
        run(f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})")
        run(f"SET LOCAL synchronous_commit = {'on' if durable else 'off'}")
        return
    synchronous = "FULL" if durable else "NORMAL"
    if connection.info.get("synchronous") != synchronous:
        run(f"PRAGMA synchronous = {synchronous}")
        connection.info["synchronous"] = synchronous
    run("BEGIN IMMEDIATE")


def _commit(connection: Connection) -> None:
    driver(connection).commit()
    connection.commit()  # SQLAlchemy's own idea of a transaction, if a statement went through it


def _primary_code(error: BaseException | None) -> int | None:
    if isinstance(error, DBAPIError):
        error = error.orig
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _raise_ours(error: BaseException, driver_errors: Any) -> NoReturn:  # noqa: ANN401 - a module by PEP 249
    primary = _primary_code(error)
    if primary in _UNAVAILABLE:
        reason, seconds = _UNAVAILABLE[primary]
        damaged = "storage-damaged" if primary in _DAMAGED else None
        raise StorageUnavailable(reason, code=damaged, retry_after=timedelta(seconds=seconds)) from error
    if primary is None and isinstance(error, driver_errors.OperationalError):
        raise StorageUnavailable("the inventory cannot be reached", retry_after=timedelta(seconds=5)) from error
    if isinstance(error, driver_errors.IntegrityError):
        raise InternalError("the inventory refused a row that would break its rules") from error
    raise InternalError("the inventory refused a statement of ours") from error
