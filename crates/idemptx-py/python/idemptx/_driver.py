"""The in-loop driver: runs one exchange on one engine, from the body to the answer.

Steps before the handler run in the client's task and end with it. After the claim is granted,
everything runs in a separate task, so that a client that leaves, or an application time-out,
cancels neither the handler nor the record of its result.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from ._client_task import ClientTask
from ._engine import start_task
from ._execution import CURRENT, OUTCOME, Execution
from ._idemptx import ANSWER, EXECUTE, STORE
from ._lease_renewer import lease_renewer
from ._reports import report_concern
from ._store_actions import StoreActions

if TYPE_CHECKING:
    from asyncio import Future, Task
    from collections.abc import Awaitable, Callable, Sequence

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

    async def end_function_scope(self) -> None:
        """Ends what can still fail before the response, if the client's task left it to this one.

        Otherwise it is done there: dependencies end in the task that entered them.
        """


class Driver(StoreActions):
    """Drives an exchange, between the client's task and that of the handler."""

    pending: Conclusion | None = None
    """A conclusion that was handed over and has not begun."""
    client_left = False
    said: Sequence[tuple[bytes, bytes]] | None = None
    """The header lines about the outcome, once there is a response."""
    _asked: ClientTask | None = None
    """What the handler's task wants done in the client's."""
    _waking: Future[None] | None = None
    """What the client's task waits for, while it does."""
    _settled: Future[None] | None = None
    _task: Task[None] | None = None
    """The handler's task, unless it has ended well."""
    _producing: Task[None] | None = None
    """What makes the rest of a body whose handler ran in the client's task."""
    is_detached = True
    _is_handed_over = False
    _is_concluded = False
    _has_left = False

    async def drive(self, work: Work, *, detached: bool = True, defers: bool = False) -> None:
        """Drives the exchange to its answer, which is then in `exchange.answer`.

        Cancelled before the claim is granted, the claim is released in the background. Cancelled
        later, only the caller stops waiting, and `client_left` is true.

        Without `detached` the work runs in the client's task, and ends with it. With `defers` the
        caller calls `settle` once everything has ended that can fail before the response.
        """
        action = self.exchange.action
        try:
            while action != ANSWER and self._granted is None:
                action = await self._advance(action)
        except BaseException:
            self._abandon()
            raise
        if self._granted is None:
            self._end()
            return
        self._stops_at_grant = False
        self.is_detached = detached
        if not detached:
            await self._execute(work)
            if not defers:
                await self.settle()
            return
        task = start_task(self.engine.loop, self._execute(work))
        if not task.done():
            self._task = task
            self.engine.tasks.add(task)
        elif task.cancelled() or task.exception() is not None:
            self._task = task
        try:
            while not self._is_concluded:
                if self._asked is not None:
                    asked, self._asked = self._asked, None
                    await asked.run()
                elif self.pending is not None:
                    if not defers:
                        await self.conclude(self._pending_action())
                    break
                else:
                    await self._until_woken()
        except asyncio.CancelledError:
            self.client_left = True
            if self._asked is not None:
                self._asked.forget()
            if not (defers and self.pending is not None):
                self._carry_on_alone()
            raise
        except BaseException:
            if self._is_handed_over:
                self._let_go()
            raise

    async def _until_woken(self) -> None:
        """Waits, in the client's task, for something to do or for the answer."""
        if self._has_left:
            raise asyncio.CancelledError  # There is no answer, because the loop is ending.
        self._waking = self.engine.loop.create_future()
        await self._waking
        self._waking = None

    def _wake_client(self) -> None:
        waking = self._waking
        if waking is not None and not waking.done():
            waking.set_result(None)

    async def in_client(self, job: Callable[[], Awaitable[R]]) -> R | None:
        """Runs a job in the client's task; `None` if that task has ended.

        Dependencies see a handler's exception in the task that entered them, because cancel scopes
        and context variables belong to a task.
        """
        if not self.is_detached:
            return await job()
        if self.client_left or (self._waking is not None and self._waking.cancelled()):
            return None
        self._asked = client_task = ClientTask(job, self.engine.loop.create_future())
        self._wake_client()
        result: R | None = await client_task.done
        return result

    def hand_over(self, conclusion: Conclusion) -> bool:
        """Leaves the conclusion to the client's task; returns false if that has ended.

        The inner application can then return while the store is asked, so that the frames of a
        whole framework need not stay alive. If the client leaves in between, another task
        concludes: every step may be taken twice.
        """
        execution = self.execution
        if execution is not None and execution.is_transactional:
            return False
        if self.client_left or (self._waking is not None and self._waking.cancelled()):
            return False
        self._is_handed_over = True
        self.pending = conclusion
        self.engine.settling.add(self)
        if self.is_detached:
            self._wake_client()
        return True

    async def conclude_here(self, conclusion: Conclusion, before: Work) -> None:
        """Concludes in the handler's task what could not be handed over."""
        if not self.client_left and self._waking is not None and self._waking.cancelled():
            # The client's task was cancelled and has not run since: it takes note first.
            await asyncio.sleep(0)
        await before.end_function_scope()
        await self.conclude(conclusion())

    async def settle(self, *, failed: bool = False) -> None:
        """Concludes with the response that was handed over, or as a failed handler.

        Cancelled, it goes on in a separate task.
        """
        if self.pending is None:
            return
        try:
            await self.conclude(self._pending_action(failed=failed))
        except asyncio.CancelledError:
            self.client_left = True
            self._carry_on_alone()
            raise

    def _pending_action(self, *, failed: bool = False) -> int:
        conclusion, self.pending = self.pending, None
        assert conclusion is not None  # noqa: S101 - the caller has seen it
        return self._broken() if failed else conclusion()

    def _broken(self) -> int:
        """Concludes without a response: the handler failed, or its response broke off."""
        if self.said is None:
            return self.exchange.failed(self.directed((), failed=True))
        return self.exchange.broke_off(self.directed(self.said, failed=True))

    def directed(
        self, headers: Sequence[tuple[bytes, bytes]], *, failed: bool = False
    ) -> Sequence[tuple[bytes, bytes]]:
        """The response's header lines, with what the handler said of the outcome in code."""
        execution = self.execution
        if execution is None or self.said:
            return headers
        directive = execution.directive_of_failure() if failed else execution.directive
        if directive is None:
            return headers
        return [*headers, (OUTCOME, directive.encode())]

    def settle_alone(self, *, failed: bool = False) -> None:
        """Concludes in a separate task, because the client's task is ending."""
        if failed and self.pending is not None:
            self.pending = self._broken
        self._carry_on_alone()

    def _carry_on_alone(self) -> None:
        """Takes over the client's task's pending work after the client has left."""
        if self._is_handed_over and not self._is_concluded:
            self.engine.spawn(self._conclude_alone())

    async def _conclude_alone(self) -> None:
        if self.pending is not None:
            await self.conclude(self._pending_action())
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
        if self._is_handed_over and self._has_left:
            self._let_go()
        else:
            self._note_settled()
        self._wake_client()

    @property
    def settled(self) -> Future[None]:
        """Resolves once a conclusion that was handed over has ended."""
        if self._settled is None:
            self._settled = self.engine.loop.create_future()
        return self._settled

    def continues_in(self, producing: Task[None]) -> None:
        """Notes a task in which the work goes on after its answer."""
        self._producing = producing

    async def finished(self) -> None:
        """Waits for the work to end after its answer; raises its exception."""
        task = self._task or self._producing
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
            token = CURRENT.set(self.execution)
            lease_renewer().add(self)
            self._is_renewed = True
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
            if exchange.action == EXECUTE and self.pending is None:
                if not _is_being_cancelled():
                    # The handler awaited a task that was cancelled elsewhere: its own exception.
                    self.error = RuntimeError("the handler awaited something that was cancelled")
                    self.error.__cause__ = error
                    await self.conclude(self._broken())
                    return
                if not self.is_detached:
                    self._is_handed_over = True
                    self.pending = self._broken
                    self._carry_on_alone()
            elif not self.is_detached and self.pending is not None:
                self.settle_alone()  # The handler has returned: its body alone was cut short.
            # A detached task is cancelled when the loop ends: the operation's result is unknown,
            # so its claim stays.
            raise
        except BaseException as error:
            if exchange.action == EXECUTE and self.pending is None:
                self.error = error
                await self.conclude(self._broken())
                if isinstance(error, Exception):
                    return
            raise
        if self.pending is None and exchange.action == EXECUTE:
            await self.conclude(self._broken())

    def _leave(self) -> None:
        """Releases the resources of the handler's task."""
        if self._task is not None:
            self.engine.tasks.discard(self._task)
        self._has_left = True
        if not self._is_concluded:
            if self.execution is not None and self.execution.is_transactional:
                # The loop is ending, so no commit will follow.
                self.engine.spawn(self._roll_back())
            if self._is_handed_over:
                return  # The task that concludes it releases the resources.
            if self._waking is not None:
                # There is no answer, because the loop is ending.
                self._waking.cancel()
        self._let_go()

    def _note_settled(self) -> None:
        if self._is_handed_over:
            self.engine.settling.discard(self)
            settled, self._settled = self._settled, None
            if settled is not None:
                settled.set_result(None)

    def _let_go(self) -> None:
        self._note_settled()
        if not self._has_deferred:
            self._renew_no_more()
            self.complete(None)
        self._give_permit_back()


def _is_being_cancelled() -> bool:
    """True if the current task was cancelled, or if this Python (3.10) does not say."""
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is None or cancelling() > 0
