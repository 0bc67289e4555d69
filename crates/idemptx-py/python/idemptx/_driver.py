"""The in-loop driver: runs one exchange on one engine, from the body to the answer.

Steps before the handler run in the client's task and end with it. After the claim is granted,
everything runs in a separate task, so that a client that leaves, or an application time-out,
cancels neither the handler nor the record of its result.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from ._client_task import ClientTask
from ._eager_task import start_task
from ._execution import CURRENT, Execution
from ._idemptx import ANSWER, EXECUTE, STORE
from ._lease_renewer import lease_renewer
from ._reports import report_concern
from ._store_actions import StoreActions

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive

    from ._engine import Engine
    from ._idemptx import Exchange, Rules
    from ._orphan import Orphan
    from ._outcomes import Observer

__all__ = ["Conclusion", "Driver", "Work"]

R = TypeVar("R")
Conclusion: TypeAlias = "Callable[[], int]"
"""Feeds the handler's response to the exchange; returns the next action."""


class Work(Protocol):
    """A handler's call, executed under a key."""

    async def run(self, driver: Driver) -> None:
        """Runs the handler, and calls `driver.conclude` with what the exchange makes of its answer.

        May continue after that. An exception before it counts as a failed handler and is kept in
        `driver.error`.
        """


class Driver(StoreActions):
    """Drives an exchange, between the client's task and that of the handler."""

    __slots__ = (
        "_conclusion",
        "_has_left",
        "_is_concluded",
        "_is_detached",
        "_is_handed_over",
        "_settled",
        "_task",
        "answered",
        "client_left",
    )

    def __init__(
        self,
        engine: Engine,
        rules: Rules,
        exchange: Exchange,
        operation: tuple[str, bytes],
        *,
        observer: Observer,
        probe: Callable[[Orphan], Any] | None,
        receive: Receive,
    ) -> None:
        super().__init__(
            engine, rules, exchange, operation, observer=observer, probe=probe, receive=receive
        )
        self.answered: Future[ClientTask | Conclusion | None] | None = None
        self.client_left = False
        self._is_handed_over = False
        self._is_concluded = False
        self._is_detached = True
        self._has_left = False
        self._conclusion: Conclusion | None = None
        self._settled: Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def drive(self, work: Work, *, detached: bool = True, defers: bool = False) -> None:
        """Drives the exchange to its answer, which is then in `exchange.answer`.

        Cancelled before the claim is granted, the claim is released in the background. Cancelled
        later, only the caller stops waiting, and `client_left` is true.

        Without `detached` the work runs in the client's task, and ends with it. With `defers` the
        caller calls `settle` once everything has ended that can fail before the response.
        """
        action = self.exchange.action
        try:
            while action != ANSWER:
                action = await self._advance(action)
                if self._granted is not None:
                    break
        except BaseException:
            self._abandon()
            raise
        if self._granted is None:
            self._end()
            return
        loop = self.engine.loop
        self.answered = loop.create_future()
        self._stops_at_grant = False
        self._is_detached = detached
        if not detached:
            await self._execute(work)
            if self.is_pending and not defers:
                await self.settle()
            return
        self._task = task = start_task(loop, self._execute(work))
        if not task.done():
            self.engine.tasks.add(task)
        try:
            while (asked := await self.answered) is not None:
                if not isinstance(asked, ClientTask):
                    if not defers:
                        await self.settle()
                    break
                self.answered = loop.create_future()
                await asked.run()
        except asyncio.CancelledError:
            self.client_left = True
            self._forget_client_task()
            if not (defers and self.is_pending):
                self._carry_on_alone()
            raise
        except BaseException:
            if self._is_handed_over:
                self._let_go()
            raise

    async def in_client(self, job: Callable[[], Awaitable[R]]) -> R | None:
        """Runs a job in the client's task; `None` if that task has ended.

        Dependencies see a handler's exception in the task that entered them, because cancel scopes
        and context variables belong to a task.
        """
        if not self._is_detached:
            return await job()
        answered = self.answered
        if answered is None or answered.done():
            return None
        client_task = ClientTask(job, self.engine.loop.create_future())
        answered.set_result(client_task)
        result: R | None = await client_task.done
        return result

    async def hand_over(self, conclusion: Conclusion) -> bool:
        """Leaves the conclusion to the client's task; returns false if that has ended.

        The inner application can then return while the store is asked, so that the frames of a
        whole framework need not stay alive. If the client leaves in between, another task
        concludes: every step may be taken twice.
        """
        answered = self.answered
        assert answered is not None  # noqa: S101 - the handler runs
        if self._is_transactional():
            return False
        if answered.cancelled():
            # The client's task was cancelled and has not run since: it takes note first.
            await asyncio.sleep(0)
        if answered.done():
            return False
        self._is_handed_over = True
        self._conclusion = conclusion
        # Draining waits for it as for a task.
        self._settled = self.engine.loop.create_future()
        self.engine.tasks.add(self._settled)
        if self._is_detached:
            answered.set_result(conclusion)
        return True

    @property
    def is_pending(self) -> bool:
        """True while a conclusion was handed over and has not begun."""
        return self._conclusion is not None

    async def settle(self, *, failed: bool = False) -> None:
        """Concludes with the response that was handed over, or as a failed handler."""
        conclusion, self._conclusion = self._conclusion, None
        if conclusion is not None:
            await self.conclude(self.exchange.broken() if failed else conclusion())

    def settle_alone(self, *, failed: bool = False) -> None:
        """Concludes in a separate task, because the client's task is ending."""
        if failed and self.is_pending:
            self._conclusion = self.exchange.broken
        self._carry_on_alone()

    def _forget_client_task(self) -> None:
        answered = self.answered
        if answered is not None and answered.done() and not answered.cancelled():
            asked = answered.result()
            if isinstance(asked, ClientTask):
                asked.forget()

    def _carry_on_alone(self) -> None:
        """Takes over the client's task's pending work after the client has left."""
        if self._is_handed_over and not self._is_concluded:
            self.engine.spawn(self._conclude_alone())

    async def _conclude_alone(self) -> None:
        if self.is_pending:
            await self.settle()
            return
        action = self.exchange.action
        if action == STORE:
            # It may have been performed already, which is safe: every step may be taken twice.
            self.exchange.step().reset()
        try:
            await self.conclude(action)
        finally:
            self._let_go()

    async def conclude(self, action: int) -> None:
        """Continues from `action` to the answer, and wakes the client's task."""
        if self.exchange.concern == "outcome":
            report_concern("outcome")
        while action != ANSWER:
            action = await self._advance(action)
        self._end()
        self._is_concluded = True
        self._note_settled()
        if self._is_handed_over and self._has_left:
            self._let_go()
        answered = self.answered
        if answered is not None and not answered.done():
            answered.set_result(None)

    async def finished(self) -> None:
        """Waits for the work to end after its answer; raises its exception."""
        task = self._task
        if task is None:
            return
        if not task.done():
            await asyncio.shield(task)
        elif not task.cancelled() and (error := task.exception()) is not None:
            raise error

    async def _execute(self, work: Work) -> None:
        exchange = self.exchange
        granted, self._granted = self._granted, None
        assert granted is not None  # noqa: S101 - `drive` has just seen it
        try:
            # The start rule holds because nothing is awaited between this and the handler's start.
            action = exchange.done(granted)
            while action not in (EXECUTE, ANSWER):
                action = await self._advance(action)
            if action == ANSWER:
                await self.conclude(action)
                return
            self.execution = Execution(exchange, self.engine, self.rules, self._operation)
            self._is_executing = True
            token = CURRENT.set(self.execution)
            lease_renewer().add(self)
            try:
                await self._run(work)
            finally:
                CURRENT.reset(token)
        finally:
            self._leave()

    async def _run(self, work: Work) -> None:
        exchange = self.exchange
        try:
            await work.run(self)
        except asyncio.CancelledError as error:
            if exchange.action == EXECUTE and not self.is_pending:
                if not _is_being_cancelled():
                    # The handler awaited a task that was cancelled elsewhere: its own exception.
                    self.error = RuntimeError("the handler awaited something that was cancelled")
                    self.error.__cause__ = error
                    await self.conclude(exchange.broken())
                    return
                if not self._is_detached:
                    self._is_handed_over = True
                    self._conclusion = exchange.broken
                    self._carry_on_alone()
            # A detached task is cancelled when the loop ends: the operation's result is unknown,
            # so its claim stays.
            raise
        except BaseException as error:
            if exchange.action == EXECUTE and not self.is_pending:
                self.error = error
                await self.conclude(exchange.broken())
                if isinstance(error, Exception):
                    return
            raise
        if exchange.action == EXECUTE and not self.is_pending:
            await self.conclude(exchange.broken())

    def _leave(self) -> None:
        """Releases the resources of the handler's task."""
        if self._task is not None:
            self.engine.tasks.discard(self._task)
        if self._is_transactional() and not self._is_concluded:
            self.engine.spawn(self._roll_back())  # The loop is ending, so no commit will follow.
        self._has_left = True
        if self._is_handed_over and not self._is_concluded:
            return  # The task that concludes it releases the resources.
        self._let_go()
        answered = self.answered
        if answered is not None and not answered.done():
            # There is no answer, because the loop is ending.
            answered.cancel()

    def _note_settled(self) -> None:
        settled, self._settled = self._settled, None
        if settled is not None:
            self.engine.tasks.discard(settled)
            settled.set_result(None)

    def _let_go(self) -> None:
        self._note_settled()
        if not self._has_deferred:
            lease_renewer().remove(self)
            self.complete(None)
        self._give_permit_back()


def _is_being_cancelled() -> bool:
    """True if the current task was cancelled, or if this Python (3.10) does not say."""
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is None or cancelling() > 0
