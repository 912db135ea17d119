"""Statements of the hot path: written once with SQLAlchemy, compiled once for a database, run by its driver itself.

Executing a statement through SQLAlchemy costs several times what SQLite needs for a look-up by key, and one enrolment
runs some twenty of them. What a value means in its column is still said once, by the types of `schema`.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from sqlalchemy import Connection, Delete, Dialect, Insert, Select, Update
from sqlalchemy.dialects import sqlite
from sqlalchemy.types import TypeEngine

Processor: TypeAlias = Callable[[Any], Any]
Statement: TypeAlias = Select[Any] | Insert | Update | Delete


class Cursor(Protocol):
    """What this needs of a cursor of PEP 249."""

    rowcount: int

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the rows."""

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row."""


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement in the words of one database, and what its values pass through on the way in and out."""

    text: str
    constants: dict[str, Any]
    write: tuple[tuple[str, Processor], ...]
    read: tuple[tuple[int, Processor], ...]
    row: Callable[[Iterable[Any]], Any]


class Prepared:
    """One statement with named parameters.

    Args:
        statement: without parameters whose number changes; every parameter but its constants is given at each run.
        columns: of an INSERT, the columns that are given.
    """

    def __init__(self, statement: Statement, columns: Iterable[str] | None = None) -> None:
        self._statement = statement
        self._columns = None if columns is None else list(columns)
        self._compiled: dict[str, _Compiled] = {}

    def one(self, connection: Connection, **values: object) -> Any:  # noqa: ANN401 - a row of these columns, or None
        """Return the first row, or None."""
        compiled = self._for(connection)
        found = _run(compiled, connection, values).fetchone()
        return None if found is None else _row(compiled, found)

    def all(self, connection: Connection, **values: object) -> list[Any]:
        """Return every row."""
        compiled = self._for(connection)
        return [_row(compiled, found) for found in _run(compiled, connection, values).fetchall()]

    def run(self, connection: Connection, **values: object) -> int:
        """Change rows; return how many."""
        return _run(self._for(connection), connection, values).rowcount

    def _for(self, connection: Connection) -> _Compiled:
        found = self._compiled.get(connection.dialect.name)
        if found is None:
            found = self._compiled[connection.dialect.name] = _compile(
                self._statement, self._columns, connection.dialect
            )
        return found


def driver(connection: Connection) -> Any:  # noqa: ANN401 - the drivers share no type
    """Return the driver's own connection; sqlite3 and psycopg both run statements on it directly."""
    return connection.connection.dbapi_connection


def _run(compiled: _Compiled, connection: Connection, values: dict[str, Any]) -> Cursor:
    for name, process in compiled.write:
        values[name] = process(values[name])
    cursor: Cursor = driver(connection).execute(compiled.text, compiled.constants | values)
    return cursor


def _row(compiled: _Compiled, found: tuple[Any, ...]) -> Any:  # noqa: ANN401 - a named tuple made at run time
    if not compiled.read:
        return compiled.row(found)
    values = list(found)
    for at, process in compiled.read:
        values[at] = process(values[at])
    return compiled.row(values)


def _compile(statement: Statement, columns: list[str] | None, dialect: Dialect) -> _Compiled:
    spoken = sqlite.dialect(paramstyle="named") if dialect.name == "sqlite" else dialect
    compiled = statement.compile(dialect=spoken, column_keys=columns)
    writers = {name: _writer(bind.type, dialect) for bind, name in compiled.bind_names.items()}
    constants = {name: bind.value for bind, name in compiled.bind_names.items() if not bind.required}
    for name, value in constants.items():
        process = writers.pop(name)
        constants[name] = process(value) if process else value
    selected = list(statement.selected_columns if isinstance(statement, Select) else statement.exported_columns)
    readers = [_reader(column.type, dialect) for column in selected]
    row = namedtuple("Row", [column.key for column in selected]) if selected else tuple  # type: ignore[misc]  # noqa: PYI024
    return _Compiled(
        text=str(compiled),
        constants=constants,
        write=tuple((name, process) for name, process in writers.items() if process),
        read=tuple((at, process) for at, process in enumerate(readers) if process),
        row=row._make if selected else row,  # type: ignore[attr-defined]  # a named tuple
    )


def _writer(kind: TypeEngine[Any], dialect: Dialect) -> Processor | None:
    return kind.dialect_impl(dialect).bind_processor(dialect)


def _reader(kind: TypeEngine[Any], dialect: Dialect) -> Processor | None:
    return kind.dialect_impl(dialect).result_processor(dialect, None)
