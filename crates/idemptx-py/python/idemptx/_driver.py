"""The in-loop driver: runs one exchange on one engine, from the body to the answer.

Steps before the handler run in the client's task and end with it. After the claim is granted,
everything runs in a separate task, so that a client that leaves, or an application time-out,
cancels neither the handler nor the record of its result.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from ._client_task import ClientTask
from ._engine import TRANSIENT, start_task
from ._execution import CURRENT, Execution
from ._idemptx import (
    ANSWER,
    CLAIM,
    CORRUPT,
    EXECUTE,
    FENCED,
    FULL,
    GRANTED,
    HELD,
    OK,
    PENDING,
    PROBE,
    RELEASE,
    SETTLE,
    STORE,
    UNAVAILABLE,
    WAIT,
    Step,
)
from ._lease_renewer import lease_renewer
from ._orphan import Orphan
from ._reports import report
from ._single_flight import Entry, WaitOver, expire, leave_with_client

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive

    from ._engine import Engine
    from ._execution import ExecutionTransaction
    from ._idemptx import Exchange, Rules, Update
    from ._store import Store

__all__ = ["Conclusion", "Driver", "Work"]

R = TypeVar("R")
Conclusion: TypeAlias = "Callable[[], int]"
"""Feeds the handler's response to the exchange; returns the next action."""

logger = logging.getLogger("idemptx")


class Work(Protocol):
    """A handler's call, executed under a key."""

    async def run(self, driver: Driver) -> None:
        """Runs the handler, and calls `driver.conclude` with what the exchange makes of its answer.

        May continue after that. An exception before it counts as a failed handler and is kept in
        `driver.error`.
        """


class Driver:
    """Drives an exchange, with the resources that it holds in this process."""

    __slots__ = (
        "_conclusion",
        "_entry",
        "_granted",
        "_has_deferred",
        "_has_left",
        "_holds_permit",
        "_is_concluded",
        "_is_detached",
        "_is_executing",
        "_is_handed_over",
        "_operation",
        "_probe",
        "_receive",
        "_settled",
        "_task",
        "answered",
        "client_left",
        "engine",
        "error",
        "exchange",
        "execution",
        "rules",
    )

    execution: Execution

    def __init__(
        self,
        engine: Engine,
        rules: Rules,
        exchange: Exchange,
        operation: tuple[str, bytes],
        *,
        probe: Callable[[Orphan], Any] | None,
        receive: Receive,
    ) -> None:
        self.engine = engine
        self.rules = rules
        self.exchange = exchange
        self.error: BaseException | None = None
        self.answered: Future[ClientTask | Conclusion | None] | None = None
        self.client_left = False
        self._operation = operation
        self._probe = probe
        self._receive = receive
        self._entry: Entry | None = None
        self._granted: Step | None = None
        self._holds_permit = False
        self._is_executing = False
        self._is_handed_over = False
        self._is_concluded = False
        self._is_detached = True
        self._has_left = False
        self._conclusion: Conclusion | None = None
        self._settled: Future[None] | None = None
        self._has_deferred = False
        self._task: asyncio.Task[None] | None = None

    @property
    def store(self) -> Store:
        """The store of the claim, for the lease renewer."""
        return self.engine.store

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

    def complete(self, update: Update | None) -> None:
        """Wakes the other requests for this record with its final state."""
        entry = self._entry
        if entry is not None:
            self._entry = None
            single_flight = self.engine.single_flight
            record = self.exchange.id
            if single_flight.get(record) is entry:
                del single_flight[record]
            entry.complete(update)

    def lose(self) -> None:
        """Marks the execution as lost and wakes the requests that wait for it."""
        with suppress(RuntimeError):  # the loop has ended, and with it every waiter
            self.engine.loop.call_soon_threadsafe(self.complete, None)
        self.execution.lose()

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
            lease_renewer().add(self, self.rules.lease)
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

    def _advance(self, action: int) -> Awaitable[int]:
        """Performs an action and returns the next one."""
        if action == STORE:
            step = self.exchange.step()
            kind = step.kind
            if kind == CLAIM:
                return self._claim(step)
            return self._settle(step) if kind == SETTLE else self._perform(step)
        if action == WAIT:
            return self._wait()
        if action == PROBE:
            return self._ask_probe()
        message = f"the exchange asks for {action}, which is the caller's part"
        raise RuntimeError(message)

    async def _perform(self, step: Step) -> int:
        if step.kind == RELEASE:
            await self._roll_back()
            lease_renewer().remove(self)
            await self.engine.perform(step)
            self.complete(None)
        else:
            await self.engine.perform(step)
        return self.exchange.done(step)

    async def _claim(self, step: Step) -> int:
        """Claims, or shares the claim result of another request in this loop.

        Called from the client's task it stops at a grant, which the handler's task then takes.
        """
        engine = self.engine
        single_flight = engine.single_flight
        record = step.id
        while self._entry is None:
            entry = single_flight.get(record)
            if entry is None:
                single_flight[record] = self._entry = Entry()
            elif entry.holder is not None:
                return self.exchange.claim_shared(entry.holder)
            else:
                update = await entry.follow(engine.loop)
                if update is not None:
                    return self.exchange.claim_shared(update)
        refusal = None
        if not self._holds_permit:
            if self.rules.refuses_unsafe_stores:
                await engine.known()
            refusal = engine.refuses(self.rules)
        if refusal is not None:
            step.fail(FULL, refusal)
        else:
            if not self._holds_permit:
                self._holds_permit = True
                engine.executions += 1
            waiting = engine.store.perform(step)
            if waiting is not None:
                await waiting
            if step.verdict == UNAVAILABLE:
                await engine.store.retry(step)
        verdict = step.verdict
        if verdict == GRANTED:
            self._entry.hold(step.update())
            if self.answered is None:
                self._granted = step
                return STORE
        else:
            if verdict >= UNAVAILABLE:
                report(step)
            self._give_permit_back()
            self.complete(step.update())
        return self.exchange.done(step)

    async def _settle(self, step: Step) -> int:
        if self._is_transactional():
            if self.exchange.keeps and self.execution.is_settled_by_hand:
                await self._roll_back()
                return await self._confirm(step)
            if self.exchange.commits and self.execution.transaction is not None:
                return await self._commit(step, self.execution.transaction)
            await self._roll_back()
        engine = self.engine
        waiting = engine.store.perform(step)
        if waiting is not None:
            await waiting
        verdict = step.verdict
        if verdict in TRANSIENT:
            verdict = await self._settle_again(step)
        if verdict == OK:
            lease_renewer().remove(self)
            self.complete(step.update() if self._is_awaited() else None)
        elif verdict in (FENCED, CORRUPT):
            lease_renewer().remove(self)
            self.complete(None)
        else:
            # Neither renewal nor single-flight entry may end before the result is in the store.
            report(step)
        return self.exchange.done(step)

    # Settlements in transactions

    def _is_transactional(self) -> bool:
        execution = self.execution if self._is_executing else None
        return execution is not None and (
            execution.is_settled_by_hand or execution.transaction is not None
        )

    async def _commit(self, step: Step, transaction: ExecutionTransaction) -> int:
        """Settles in the handler's transaction and commits it."""
        lease_renewer().remove(self)
        committed = await transaction.commit(step, self.rules.settle_timeout)
        if committed is None:
            return self.exchange.uncommitted()
        if not committed:
            return await self._confirm(step)
        step.succeed()
        self.complete(step.update() if self._is_awaited() else None)
        return self.exchange.done(step)

    async def _confirm(self, step: Step) -> int:
        """Looks up the result of a settlement in a transaction."""
        lease_renewer().remove(self)
        looked = Step.lookup(step.id)
        await self._until_told(looked)
        action = self.exchange.confirmed(looked)
        if action == ANSWER:
            self.complete(looked.update() if self._is_awaited() else None)
        elif looked.verdict == HELD:
            logger.error("the handler's transaction was not committed, or is on another database")
        return action

    async def _roll_back(self) -> None:
        if self._is_executing and self.execution.transaction is not None:
            await self.execution.transaction.roll_back(self.rules.settle_timeout)

    async def _settle_again(self, step: Step) -> int:
        await self.engine.store.retry(step)
        return await self._until_told(step)

    async def _until_told(self, step: Step) -> int:
        """Repeats a step until it has a verdict, within the time limit of a settlement."""
        loop = self.engine.loop
        until = loop.time() + self.rules.settle_timeout
        pause = SETTLE_PAUSE_MIN
        if step.verdict == PENDING:
            await self.engine.perform(step)
        while step.verdict in TRANSIENT and (left := until - loop.time()) > 0:
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 2, SETTLE_PAUSE_MAX)
            step.reset()
            await self.engine.perform(step)
        return step.verdict

    def _is_awaited(self) -> bool:
        return self._entry is not None and bool(self._entry.waiters)

    async def _wait(self) -> int:
        """Waits for the end of another claim, sharing one watch with this loop's other waiters."""
        engine, exchange, rules = self.engine, self.exchange, self.rules
        record = exchange.id
        entry = engine.single_flight.get(record)
        if engine.waiting >= rules.waiters_total_max or (
            entry is not None
            and entry.waiters is not None
            and len(entry.waiters) >= rules.waiters_max
        ):
            return exchange.waiters_full()
        if entry is None:
            engine.single_flight[record] = entry = Entry(exchange.holder)
            waiter = entry.wait(engine.loop)
            engine.watch_record(record, entry, rules.claim_timeout)
        else:
            waiter = entry.wait(engine.loop)
        engine.waiting += 1
        timer = engine.loop.call_later(exchange.wait, expire, waiter)
        leaving = engine.spawn(leave_with_client(waiter, self._receive))
        try:
            update = await waiter
        except WaitOver:
            return exchange.wait_over()
        finally:
            engine.waiting -= 1
            timer.cancel()
            leaving.cancel()
            entry.leave(waiter)
        return exchange.woken(None if update is None or update.is_held else update)

    async def _ask_probe(self) -> int:
        exchange = self.exchange
        if self._probe is None:
            return exchange.probed(None)
        try:
            found = self._probe(Orphan(exchange))
            if inspect.isawaitable(found):
                found = await asyncio.wait_for(found, PROBE_TIMEOUT)
        except Exception:
            logger.exception("the probe failed; nothing is known of the orphan")
            return exchange.probed(None)
        if found is None:
            return exchange.probed(None)
        if found is False:
            return exchange.probed(False)
        return exchange.probed(True, found.status_code, found.raw_headers, found.body)

    def _end(self) -> None:
        """Hands unconfirmed work to the engine once the exchange has its answer."""
        deferred = self.exchange.deferred()
        if deferred is not None:
            self._has_deferred = True
            self.engine.confirm_later(deferred, self, settles=deferred.kind == SETTLE)

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

    def _abandon(self) -> None:
        """Abandons the exchange because the client left before the handler was started."""
        deferred = self.exchange.abandon()
        self.complete(None)
        self._give_permit_back()
        if deferred is not None:
            self.engine.confirm_later(deferred, self, settles=False)

    def _give_permit_back(self) -> None:
        if self._holds_permit:
            self._holds_permit = False
            self.engine.executions -= 1


def _is_being_cancelled() -> bool:
    """True if the current task was cancelled, or if this Python (3.10) does not say."""
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is None or cancelling() > 0


SETTLE_PAUSE_MIN = 0.02
SETTLE_PAUSE_MAX = 0.5
PROBE_TIMEOUT = 10.0
