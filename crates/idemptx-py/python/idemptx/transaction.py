"""Exactly once: a handler's writes to PostgreSQL are committed together with its record."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool

from ._connections import Connection, adapted
from ._execution import current_execution
from .exceptions import RequestRefusedException

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._execution import Execution
    from ._idemptx import Step

__all__ = ["IdempotentTransaction", "OpenTransaction", "PendingTransaction"]

logger = logging.getLogger("idemptx")


class IdempotentTransaction:
    """A dependency: a connection in a transaction that is committed with the record.

        transaction = IdempotentTransaction(pool.connection)

        @app.post("/charges")
        @idempotent(PostgresBackend(url))
        async def charge(tx: Annotated[AsyncConnection, Depends(transaction)]) -> Receipt:
            await tx.execute("INSERT INTO charges …")

    A response with a status below 400 is recorded in the transaction, which is then committed; any
    other status rolls it back. A client never gets a response whose commit is unknown.

    `connect` returns a connection to the database of the records, for the exclusive use of this
    request: a pool's `connection` or `acquire`, a session maker, `engine.connect`, or a function
    that opens one. It is called once the request is to be executed, never for a replay; in a thread
    unless it is a coroutine function or has turned out to give what is entered or awaited.
    The handler neither commits nor rolls back.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:  # noqa: D107
        if not callable(connect):
            message = f"connect is called for each transaction; {connect!r} cannot be"
            raise TypeError(message)
        self._connect = connect
        self._blocks = not inspect.iscoroutinefunction(connect)

    async def __call__(self) -> Any:
        """Returns the connection for `Depends`, or a placeholder that the decorator replaces."""
        execution = current_execution()
        return PendingTransaction(self) if execution is None else await self.begin(execution)

    async def begin(self, execution: Execution) -> Any:
        """Begins the execution's transaction, where there are no dependencies: its connection.

        Raises `RuntimeError` or `TypeError` if the execution has one already, if its records are
        elsewhere, or if it is no connection of a driver that we know; and
        `RequestRefusedException`, of status 503, if it cannot be begun.
        """
        execution.check_transactional()
        try:
            opened = await OpenTransaction.open(self, execution)
        except (RuntimeError, TypeError):
            raise
        except Exception as error:
            # Nothing has happened yet: release the key, also if the policy stores this status.
            execution.direct("release")
            logger.exception("no transaction could be begun")
            refused = RequestRefusedException("No transaction could be begun. Try again later.")
            refused.status_code, refused.code = 503, "store-unavailable"
            raise refused from error
        return opened.connection

    async def entered(self) -> tuple[Any, Any]:
        """A connection, and the context manager that it came out of, if it did."""
        made = await run_in_threadpool(self._connect) if self._blocks else self._connect()
        if hasattr(made, "__aenter__"):
            self._blocks = False
            return await made.__aenter__(), made
        if hasattr(made, "__await__"):
            self._blocks = False
            return await made, None
        if hasattr(made, "__enter__"):
            return await run_in_threadpool(made.__enter__), made
        return made, None


class PendingTransaction:
    """A placeholder for a transaction until the handler's execution begins."""

    def __init__(self, transaction: IdempotentTransaction) -> None:
        """Stands for what this one will begin."""
        self.transaction = transaction

    def __getattr__(self, name: str) -> Any:
        """Raises `RuntimeError`: the placeholder is not a connection."""
        raise RuntimeError(NOT_YET)


class OpenTransaction:
    """The transaction of one execution, until it is committed or rolled back."""

    def __init__(self, execution: Execution, connection: Connection, manager: Any) -> None:
        """Takes a connection, and the context manager that it came out of, if it did."""
        self._execution = execution
        self._connection = connection
        self._manager = manager
        self._id = ""
        self._is_over = False

    @classmethod
    async def open(
        cls, transaction: IdempotentTransaction, execution: Execution
    ) -> OpenTransaction:
        """Connects, begins, and attaches the transaction to the execution."""
        entered, manager = await transaction.entered()
        opened: OpenTransaction | None = None
        try:
            connection = adapted(entered)
            opened = cls(execution, connection, manager)
            await opened._begin()
            execution.attach(opened)
        except BaseException:
            if opened is not None:
                await opened.roll_back(CALL_MAX)
            elif manager is not None:
                await _left(manager)
            raise
        return opened

    @property
    def connection(self) -> Any:
        """The connection that the handler uses."""
        return self._connection.connection

    async def flush(self) -> None:
        """Sends what is due, so that what is wrong with it is the handler's own exception."""
        await self._connection.call(self._connection.flush)

    async def commit(self, step: Step, limit: float) -> bool | None:
        """Settles in it, and commits, within so many seconds.

        False if the record is no longer the execution's, or the transaction not the one that was
        begun: nothing was committed. None if that is not known.
        """
        self._is_over = True
        # A separate task, because a commit cannot be cancelled once it was sent.
        committing = self._execution.spawn(self._commit(step))
        done, _ = await asyncio.wait({committing}, timeout=limit)
        return committing.result() if done else None

    async def roll_back(self, limit: float) -> None:
        """Rolls it back, unless it has ended; no commit can follow."""
        if not self._is_over:
            self._is_over = True
            await asyncio.wait({self._execution.spawn(self._roll_back())}, timeout=limit)

    async def _begin(self) -> None:
        connection = self._connection
        await connection.call(connection.begin)
        if not connection.is_open():
            raise RuntimeError(BY_ITSELF)
        nothing: Any = () if connection.style == "numeric" else {}
        self._id = (await connection.call(connection.first, BEGUN, nothing))[0]

    async def _commit(self, step: Step) -> bool | None:
        connection = self._connection
        settled: object = None
        try:
            text, parameters = self._execution.statement(step, connection.style, self._id)
            settled = await self._call(connection.first, text, parameters)
            await self._call(connection.roll_back if settled is None else connection.commit)
        except Exception:
            logger.exception("a transaction was not committed, or nobody knows whether it was")
            self._execution.spawn(self._roll_back())
            return None
        # The answer does not wait for the connection's return.
        self._execution.spawn(self._leave())
        return settled is not None

    async def _roll_back(self) -> None:
        try:
            await self._call(self._connection.roll_back)
        except Exception as error:  # noqa: BLE001 - nobody commits it any more
            logger.info("no transaction is left to be rolled back: %s", error)
        await self._leave()

    async def _leave(self) -> None:
        try:
            if self._manager is not None:
                await asyncio.wait_for(_left(self._manager), CALL_MAX)
            else:
                await self._call(self._connection.close)
        except Exception as error:  # noqa: BLE001 - it has ended, one way or the other
            logger.info("a connection could not be given back: %s", error)

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        # Longer than any caller waits: only a hanging call is cancelled.
        return await asyncio.wait_for(self._connection.call(function, *arguments), CALL_MAX)


async def _left(manager: Any) -> None:
    if hasattr(manager, "__aexit__"):
        await manager.__aexit__(None, None, None)
    else:
        await run_in_threadpool(manager.__exit__, None, None, None)


BEGUN = "SELECT pg_current_xact_id()::text"
NOT_YET = (
    "this transaction begins with the handler's execution: the request needs a key (`required`), "
    "and under the decorator it is a parameter of the handler, not of another dependency"
)
CALL_MAX = 30.0
"""The seconds that a driver's call may take to end a transaction."""
BY_ITSELF = (
    "this connection commits each statement by itself (autocommit): nothing would be committed "
    "together"
)
