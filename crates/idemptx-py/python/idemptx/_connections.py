"""Adapts the application's PostgreSQL connections for a settlement: one class for each driver.

No driver is imported here: an application that passes a connection has imported its driver.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from starlette.concurrency import run_in_threadpool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["SQLITE", "Connection", "Style", "adapted"]

Style = Literal["pyformat", "numeric"]


class Connection:
    """A connection in whose transaction something is settled.

    Its calls are the driver's: they have to be awaited if `is_async`, and block otherwise.
    """

    is_async = False
    style: Style = "pyformat"
    """The parameter style of statements: `%(p1)s` from a mapping, or `$1` from a sequence."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def begin(self) -> Any:
        """Begins a transaction, unless the first statement begins it."""

    def is_open(self) -> bool:
        """True if a statement would be part of the application's open transaction."""
        raise NotImplementedError

    def first(self, text: str, parameters: Any) -> Any:
        """Returns the first row of a statement's result; `None` without one."""
        raise NotImplementedError

    def flush(self) -> Any:
        """Sends everything that a commit would send."""

    def commit(self) -> Any:
        """Commits the transaction."""
        return self.connection.commit()

    def roll_back(self) -> Any:
        """Rolls the transaction back."""
        return self.connection.rollback()

    def close(self) -> Any:
        """Closes a connection that was made for one transaction alone."""
        return self.connection.close()

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls one of the above from an event loop: in a thread, if it blocks."""
        if not self.is_async:
            return await run_in_threadpool(function, *arguments)
        result = function(*arguments)
        return await result if hasattr(result, "__await__") else result


class _Psycopg(Connection):
    def begin(self) -> Any:
        # Elsewhere the first statement begins it.
        return self.connection.execute("BEGIN") if self.connection.autocommit else None

    def is_open(self) -> bool:
        # Not libpq's TRANS_IDLE, or a statement would begin one.
        return not self.connection.autocommit or self.connection.info.transaction_status != 0

    def first(self, text: str, parameters: Any) -> Any:
        with self.connection.cursor(row_factory=_tuple_row()) as cursor:
            cursor.execute(text, parameters)
            return cursor.fetchone()


class _AsyncPsycopg(_Psycopg):
    is_async = True

    async def first(self, text: str, parameters: Any) -> Any:
        async with self.connection.cursor(row_factory=_tuple_row()) as cursor:
            await cursor.execute(text, parameters)
            return await cursor.fetchone()


class _Asyncpg(Connection):
    is_async = True
    style = "numeric"

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._transaction: Any = None

    def begin(self) -> Any:
        self._transaction = self.connection.transaction()
        return self._transaction.start()

    def is_open(self) -> bool:
        return bool(self.connection.is_in_transaction())

    def first(self, text: str, parameters: Any) -> Any:
        return self.connection.fetchrow(text, *parameters)

    def commit(self) -> Any:
        return self._transaction.commit()

    def roll_back(self) -> Any:
        return self._transaction.rollback()


class _Alchemy(Connection):
    """A `Connection` or a `Session` of SQLAlchemy, with any driver that has one of our styles."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        dialect = self._bind().dialect
        if dialect.name != "postgresql":
            raise TypeError(SQLITE if dialect.name == "sqlite" else OTHERS.format(dialect.name))
        if dialect.paramstyle not in STYLES:
            raise TypeError(OTHERS.format(f"{dialect.name}+{dialect.driver}"))
        self.style = STYLES[dialect.paramstyle]

    def _bind(self) -> Any:
        """A connection, or what a session gets its connections from."""
        get_bind = getattr(self.connection, "get_bind", None)
        if get_bind is not None:
            return get_bind()
        return getattr(self.connection, "sync_connection", None) or self.connection

    def is_open(self) -> bool:
        # The first statement begins a transaction, unless the connection commits each one.
        bind = self._bind()
        engines = getattr(bind.dialect, "_on_connect_isolation_level", None)
        level = bind.get_execution_options().get("isolation_level", engines)
        return str(level).upper() != "AUTOCOMMIT"

    def first(self, text: str, parameters: Any) -> Any:
        connection = self.connection
        if hasattr(connection, "connection") and hasattr(connection, "get_bind"):
            connection = connection.connection()
        with _hidden_parameters():
            return connection.exec_driver_sql(text, parameters).fetchone()

    def flush(self) -> Any:
        flush = getattr(self.connection, "flush", None)
        return None if flush is None else flush()


class _AsyncAlchemy(_Alchemy):
    is_async = True

    async def first(self, text: str, parameters: Any) -> Any:
        connection = self.connection
        if hasattr(connection, "get_bind"):
            connection = await connection.connection()
        with _hidden_parameters():
            result = await connection.exec_driver_sql(text, parameters)
            return result.fetchone()


@contextmanager
def _hidden_parameters() -> Iterator[None]:
    """Keeps a record, and the response in it, out of the texts of SQLAlchemy's exceptions."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "hide_parameters"):
            error.hide_parameters = True
        raise


def _tuple_row() -> Any:
    """Returns psycopg's tuple row factory, independent of the connection's own."""
    return sys.modules["psycopg.rows"].tuple_row


def adapted(connection: Any) -> Connection:
    """Adapts a connection; `TypeError` lists the supported kinds."""
    for module, name, kind in KINDS:
        known = getattr(sys.modules.get(module), name, None)
        if known is not None and isinstance(connection, known):
            return kind(connection)
    root = type(connection).__module__.partition(".")[0]
    if root in ("sqlite3", "aiosqlite"):
        raise TypeError(SQLITE)
    name = f"{type(connection).__module__}.{type(connection).__qualname__}"
    raise TypeError(OTHERS.format(name))


KINDS: tuple[tuple[str, str, type[Connection]], ...] = (
    ("psycopg", "AsyncConnection", _AsyncPsycopg),
    ("psycopg", "Connection", _Psycopg),
    ("asyncpg", "Connection", _Asyncpg),
    ("asyncpg.pool", "PoolConnectionProxy", _Asyncpg),
    ("sqlalchemy.ext.asyncio", "AsyncSession", _AsyncAlchemy),
    ("sqlalchemy.ext.asyncio", "AsyncConnection", _AsyncAlchemy),
    ("sqlalchemy.ext.asyncio", "async_scoped_session", _AsyncAlchemy),
    ("sqlalchemy.orm", "Session", _Alchemy),
    ("sqlalchemy.orm", "scoped_session", _Alchemy),
    ("sqlalchemy", "Connection", _Alchemy),
)
STYLES: dict[str, Style] = {
    "pyformat": "pyformat",
    "numeric_dollar": "numeric",
}
OTHERS = (
    "an operation is settled in a connection of psycopg 3 or asyncpg, or in a connection or "
    "session of SQLAlchemy over one of them, not in {}"
)
SQLITE = (
    "a record in SQLite cannot be settled through Python's own sqlite3: the process would have the "
    "file open with two copies of SQLite, and either would drop the other's locks, which corrupts "
    "it; keep the application's tables in another file and give the record a step, or use "
    "PostgresBackend"
)
