"""The execution as its handler sees it."""

from __future__ import annotations

import asyncio
import inspect
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from ._connections import adapted
from ._idemptx import ABSENT, HELD
from ._step_form import StepForm
from .exceptions import LeaseLostException, RecoveryException

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task
    from collections.abc import Awaitable, Callable, Coroutine

    from starlette.responses import Response

    from ._connections import Connection, Style
    from ._engine import Engine
    from ._idemptx import Exchange, Recovery, Rules, Step

__all__ = ["CURRENT", "Directive", "Execution", "ExecutionTransaction", "current_execution"]

R = TypeVar("R")
T = TypeVar("T")
Directive = Literal["store", "release", "unknown"]


class ExecutionTransaction(Protocol):
    """A transaction that ends with an execution."""

    @property
    def connection(self) -> Any:
        """The connection that the handler uses."""

    async def flush(self) -> None:
        """Sends what a commit would send, so that its errors are the handler's."""

    async def commit(self, step: Step, limit: float) -> bool | None:
        """Settles and commits within so many seconds; `None` if the end is unknown."""

    async def roll_back(self, limit: float) -> None:
        """Rolls back, unless it has ended."""


class Execution:
    """The execution that a handler runs in."""

    __slots__ = (
        "_engine",
        "_exchange",
        "_has_unkept_step",
        "_lost",
        "_operation",
        "_rules",
        "_steps",
        "directive",
        "is_settled_by_hand",
        "transaction",
    )

    def __init__(
        self, exchange: Exchange, engine: Engine, rules: Rules, operation: tuple[str, bytes]
    ) -> None:
        self._exchange = exchange
        self._engine = engine
        self._rules = rules
        self._operation = operation
        self._steps = 0
        self._lost = False
        self._has_unkept_step = False
        self.directive: Directive | None = None
        self.is_settled_by_hand = False
        self.transaction: ExecutionTransaction | None = None

    @property
    def key(self) -> str:
        """The client's key, quotes and escapes undone."""
        return self._exchange.key

    @property
    def attempt(self) -> int:
        """The number of this execution: 1, or more after an orphan was taken over."""
        return self._exchange.attempt

    @property
    def token(self) -> str:
        """The random token of this execution's claim."""
        return self._exchange.token

    @property
    def fence(self) -> int:
        """A number greater than that of any earlier execution that may still be running.

        Give it to systems that can refuse a stale writer.
        """
        return self._exchange.fence

    @property
    def is_lost(self) -> bool:
        """True if another execution took the operation over, so that this result is discarded."""
        return self._lost

    @property
    def is_transactional(self) -> bool:
        """True if the operation is settled in a transaction."""
        return self.transaction is not None or self.is_settled_by_hand

    def derive(self, label: str) -> str:
        """A key for a call to another system, named by `label`.

        It depends on scope, key and label (and the policy's secret) alone: every attempt derives
        the same, so a downstream system that honours keys executes once, however often we do.
        """
        return self._exchange.derive(label)

    def direct(self, outcome: Directive) -> None:
        """Sets the outcome of the response, independent of its status.

        `store` keeps it, `release` lets the next request execute, and `unknown` refuses retries
        until an operator has decided. That counts also if the handler then raises. An
        `Idempotency-Outcome` header in the response has the same effect and takes precedence.
        """
        if outcome not in ("store", "release", "unknown"):
            message = f"an execution is directed to store, release or unknown, not {outcome!r}"
            raise ValueError(message)
        self.directive = outcome

    def step(
        self, label: str, call: Callable[[], Awaitable[T] | T], returns: Any = None
    ) -> Coroutine[Any, Any, T]:
        """Runs a step of the operation, or returns the result of an earlier attempt.

            charge = await execution.step("charge", lambda: psp.charge(execution.derive("charge")))

        The result is kept under the label for as long as the operation's key, and never changes.
        It is kept as JSON, as FastAPI would serialise it, and comes back as the type `returns`, or
        as the one that the function's annotation names: a Pydantic model, a dataclass, a datetime.
        A type that cannot be kept is a `TypeError` before anything has run. Without either, as for
        a lambda, it is what JSON makes of the value, the first time too. An exception is not kept.
        A step whose process dies runs again, so a call to another system should carry a derived
        key.

        A result that is no JSON, or is too large, is known only when the step has run. Then that it
        has run is kept instead: this attempt gets a `TypeError` or `ValueError`, each later one a
        `RecoveryException`, and it never runs again. If the handler raises it, the outcome of the
        operation is unknown: retries are refused until an operator has decided.

        Raises `LeaseLostException` if another execution took the operation over, and
        `RecoveryException` if the store gave no answer: nothing has run, or its result is not kept.
        `ValueError` and `TypeError` say what to change.
        """
        # Told here: what nobody awaits would never say so.
        if not _runs_in(self._engine.loop):
            raise RuntimeError(UNAWAITED)
        return self._step(label, call, returns)

    async def _step(self, label: str, call: Callable[[], Awaitable[T] | T], returns: Any) -> T:
        form = StepForm(call, returns)
        recovery = self._begin_step(label)
        found = await self._recalled(recovery)
        if found is None:
            result = call()
            if inspect.isawaitable(result):
                result = await result
            found = await self._kept(label, recovery, form, result)
        value: T = form.load(found)
        return value

    def blocking_step(self, label: str, call: Callable[[], T], returns: Any = None) -> T:
        """Runs a step of a plain `def` handler, in the handler's thread."""
        loop = self._engine.loop
        if _runs_in(loop):
            raise RuntimeError(BLOCKING)
        form = StepForm(call, returns)
        recovery = self._begin_step(label)
        found = asyncio.run_coroutine_threadsafe(self._recalled(recovery), loop).result()
        if found is None:
            result = call()
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError(NOT_RUN)
            keeping = self._kept(label, recovery, form, result)
            found = asyncio.run_coroutine_threadsafe(keeping, loop).result()
        value: T = form.load(found)
        return value

    def _begin_step(self, label: str) -> Recovery:
        recovery = self._exchange.recovery(label)
        self._steps += 1
        if self._steps > STEPS_MAX:
            message = f"an execution has {STEPS_MAX} steps at most"
            raise ValueError(message)
        return recovery

    async def _recalled(self, recovery: Recovery) -> bytes | None:
        """The result of an earlier attempt, if there is one."""
        for looking in recovery.lookups():
            await self._engine.perform(looking)
            if recovery.looked(looking):
                return self._found(recovery)
            if looking.verdict not in (ABSENT, HELD):
                raise RecoveryException(looking.failure or UNKNOWN)
        if self._lost:
            raise LeaseLostException(LOST)
        return None

    def _found(self, recovery: Recovery) -> bytes | None:
        """The result that was found; raises if a step ran whose result could not be kept."""
        if recovery.is_unkept:
            self._has_unkept_step = True
            raise RecoveryException(UNKEPT)
        return recovery.found

    async def _kept(self, label: str, recovery: Recovery, form: StepForm, result: object) -> bytes:
        """Stores a result, or returns the one that another execution has stored first."""
        try:
            text = form.dump(result)
        except Exception as error:  # noqa: BLE001 - whatever a result's conversion raises
            return await self._noted(label, recovery, error)
        keeping = recovery.keep(text)
        if keeping is None:
            return await self._noted(label, recovery, ValueError(TOO_LARGE))
        return await self._stored(recovery, keeping) or text

    async def _noted(self, label: str, recovery: Recovery, error: Exception) -> bytes:
        """Stores that a step has run, and raises why it has no result; or returns as `_kept`."""
        # It happened; that its result cannot be stored must not make it happen again.
        self._has_unkept_step = True
        found = await self._stored(recovery, recovery.keep_none())
        if found is not None:
            self._has_unkept_step = False
            return found
        kind = TypeError if isinstance(error, TypeError) else ValueError
        message = f"the step {label!r} has run, will not run again, and has no result: {error}"
        raise kind(message) from error

    async def _stored(self, recovery: Recovery, keeping: Step) -> bytes | None:
        """Stores what became of a step; returns what another execution has stored first."""
        loop = self._engine.loop
        until = loop.time() + self._rules.settle_timeout
        pause = KEEP_PAUSE_MIN
        while True:
            await self._engine.perform(keeping)
            following = recovery.kept(keeping)
            if following is None:
                return self._found(recovery)
            if recovery.is_contended:
                if loop.time() >= until:
                    raise RecoveryException(keeping.failure or UNKNOWN)
                await asyncio.sleep(pause)
                pause = min(pause * 2, KEEP_PAUSE_MAX)
            keeping = following

    def settle_in(self, connection: Any, response: Response) -> Any:
        """Settles the operation with its response, in the application's own transaction.

            async with pool.connection() as connection:
                await connection.execute("INSERT INTO charges …")
                response = JSONResponse({"charge": "c_1"}, 201)
                await execution.settle_in(connection, response)
            return response

        When that transaction is committed, the operation has happened and has its answer; so commit
        it, and then return this very response. The connection is one of psycopg 3 or asyncpg, or a
        connection or session of SQLAlchemy, to the database that the records are in. With an
        asynchronous one, await this; with another it is done when this returns. Gives the response.

        Raises `LeaseLostException` if another execution took the operation over: let it roll the
        transaction back and leave the handler, and the client gets the operation's result. Raises
        `TypeError`, `ValueError` or `RuntimeError` with what to change, and what the driver raises.
        """
        self.check_transactional()
        adapter = adapted(connection)
        if not adapter.is_open():
            raise RuntimeError(NO_TRANSACTION)
        status, headers, body = response.status_code, response.raw_headers, bytes(response.body)
        step = self._exchange.settlement(status, headers, body)
        if step is None:
            raise ValueError(NOT_STORABLE)
        text, parameters = self.statement(step, adapter.style, None)
        if adapter.is_async:
            return self._settle_awaiting(adapter, text, parameters, response)
        self._settled(adapter.first(text, parameters))
        return response

    async def _settle_awaiting(
        self, adapter: Connection, text: str, parameters: Any, response: Response
    ) -> Response:
        self._settled(await adapter.first(text, parameters))
        return response

    def _settled(self, row: object) -> None:
        if row is None:
            raise LeaseLostException(LOST)
        self.is_settled_by_hand = True
        self.directive = "store"

    # For the driver, and for transactions

    def check_transactional(self) -> None:
        """Raises `TypeError` if nothing can be committed together with the record."""
        if self._rules.is_shadow:
            raise TypeError(SHADOW)
        refusal = getattr(self._engine.store, "refuses_transactions", ELSEWHERE)
        if refusal is not None:
            raise TypeError(refusal)

    def attach(self, transaction: ExecutionTransaction) -> None:
        """Attaches a transaction, which ends with the execution."""
        if self.transaction is not None:
            raise RuntimeError("this execution has a transaction already")
        self.transaction = transaction

    def statement(self, step: Step, style: Style, transaction: str | None) -> tuple[str, Any]:
        """A settlement as SQL, and its parameters."""
        store: Any = self._engine.store
        result: tuple[str, Any] = store.settle_statement(step, style, transaction)
        return result

    def spawn(self, coroutine: Coroutine[Any, Any, R]) -> Task[R]:
        """Starts a task that continues if the client leaves."""
        return self._engine.spawn(coroutine)

    def covers(self, engine: Engine, exchange: Exchange, operation: tuple[str, bytes]) -> bool:
        """True if an outer layer executes this operation already."""
        return (
            engine is self._engine
            and exchange.id == self._exchange.id
            and operation == self._operation
        )

    def directive_of_failure(self) -> Directive | None:
        """The outcome of a handler that raised, unless its policy decides."""
        # Retries could only fail as well: what the step did is there, and its result is not.
        return self.directive or ("unknown" if self._has_unkept_step else None)

    def lose(self) -> None:
        """Notes that the lease is lost; called by the driver."""
        self._lost = True

    def __repr__(self) -> str:
        """Omits the key, which may be a secret."""
        return f"<Execution attempt={self.attempt} fence={self.fence}>"


def _runs_in(loop: AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def current_execution() -> Execution | None:
    """The execution that the calling handler is part of; `None` when it runs without a key."""
    return CURRENT.get()


CURRENT: ContextVar[Execution | None] = ContextVar("idemptx.execution", default=None)
OUTCOME = b"idempotency-outcome"
"""The header in which a response says of its outcome what `direct` says."""
STEPS_MAX = 100
KEEP_PAUSE_MIN = 0.002
KEEP_PAUSE_MAX = 0.2
BLOCKING = "blocking_step would block its own event loop: in an async def handler await step"
UNAWAITED = "step is awaited in an async def handler: in a plain def handler it is blocking_step"
NOT_RUN = "blocking_step runs no coroutine: give it a plain function, or make the handler async def"
UNKNOWN = "the store gave no answer about the step"
UNKEPT = "the step ran in an earlier attempt, and its result could not be kept: nothing has run"
TOO_LARGE = "its result is larger than response_bytes_max"
LOST = "the operation is no longer this execution's: its transaction must be rolled back"
ELSEWHERE = (
    "the records are not in the application's database, so nothing can be committed together with "
    "them: use PostgresBackend"
)
SHADOW = "in shadow mode duplicates are executed, so nothing can happen exactly once"
NO_TRANSACTION = (
    "this connection is in no transaction: nothing would be committed together; begin one, and do "
    "everything that belongs to the operation in it"
)
NOT_STORABLE = "the response is larger than response_bytes_max, or cannot be replayed"
