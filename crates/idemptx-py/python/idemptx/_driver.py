"""The in-loop driver: one passage on one engine, from the request's body to its answer.

What comes before the handler runs in the client's own task and ends with it. From the granted
claim on everything runs in a task of its own, so that a client that leaves, or an application
time-out, cancels neither the handler nor the record of what it did.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ._execution import CURRENT, Execution
from ._flight import Flight, WaitOver, expire
from ._idemptx import (
    ANSWER,
    CLAIM,
    CORRUPT,
    EXECUTE,
    FENCED,
    FULL,
    GRANTED,
    HELD,
    INTERNAL,
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
from ._keeper import keeper
from ._reports import report
from ._work import Errand, Orphan, Work

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Awaitable, Callable

    from ._engine import Engine
    from ._idemptx import News, Passage, Rules
    from .transaction import OpenTransaction

__all__ = ["Driver"]

R = TypeVar("R")

logger = logging.getLogger("idemptx")


class Driver:
    """A passage with what it holds in this process."""

    __slots__ = (
        "_behind",
        "_flight",
        "_granted",
        "_holds_permit",
        "_is_concluded",
        "_is_executing",
        "_is_handed_over",
        "_probe",
        "_task",
        "answered",
        "client_left",
        "engine",
        "error",
        "execution",
        "passage",
        "rules",
    )

    execution: Execution

    def __init__(
        self,
        engine: Engine,
        rules: Rules,
        passage: Passage,
        probe: Callable[[Orphan], Any] | None = None,
    ) -> None:
        self.engine = engine
        self.rules = rules
        self.passage = passage
        self.error: BaseException | None = None
        self.answered: Future[Errand | int | None] | None = None
        self.client_left = False
        self._probe = probe
        self._flight: Flight | None = None
        self._granted: Step | None = None
        self._holds_permit = False
        self._is_executing = False
        self._is_handed_over = False
        self._is_concluded = False
        self._behind = False
        self._task: asyncio.Task[None] | None = None

    async def drive(self, work: Work) -> None:
        """From the request's body to the answer, which `passage.answer` then tells.

        Cancelled before the claim is granted, the claim is released behind. Cancelled later, only
        the caller stops waiting: `client_left` tells the work that nobody takes its answer.
        """
        action = self.passage.action
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
        self._task = task = loop.create_task(self._execute(work))
        self.engine.tasks.add(task)
        try:
            while (asked := await self.answered) is not None:
                if isinstance(asked, int):
                    await self.conclude(asked)
                    break
                self.answered = loop.create_future()
                await asked.run()
        except asyncio.CancelledError:
            self.client_left = True
            self._carry_on_alone()
            raise
        except BaseException:
            if self._is_handed_over:
                self._let_go()
            raise

    async def in_client(self, job: Callable[[], Awaitable[R]]) -> R | None:
        """Does something that belongs into the client's own task; `None` once that has left."""
        answered = self.answered
        if answered is None or answered.done():
            return None
        errand = Errand(job, self.engine.loop.create_future())
        answered.set_result(errand)
        result: R | None = await errand.done
        return result

    def hand_over(self, action: int) -> bool:
        """Leaves the conclusion to the client's task; whether that is still there.

        The application need not stand by while the store is asked: its calls can return.
        """
        answered = self.answered
        if answered is None or answered.done() or self._is_transactional():
            return False
        self._is_handed_over = True
        answered.set_result(action)
        return True

    def _carry_on_alone(self) -> None:
        """The client left: what its task had been sent for is done without it."""
        answered = self.answered
        if answered is not None and answered.done() and not answered.cancelled():
            asked = answered.result()
            if isinstance(asked, Errand):
                asked.forget()
        if self._is_handed_over and not self._is_concluded:
            self.engine.spawn(self._conclude_alone())

    async def _conclude_alone(self) -> None:
        action = self.passage.action
        if action == STORE:
            # It may have been performed or not: every step may be taken twice.
            self.passage.step().again()
        try:
            await self.conclude(action)
        finally:
            self._let_go()

    async def conclude(self, action: int) -> None:
        """Goes on with `action` to the answer, and lets the client have it."""
        while action != ANSWER:
            action = await self._advance(action)
        self._end()
        self._is_concluded = True
        if self._is_handed_over:
            self._let_go()
        answered = self.answered
        if answered is not None and not answered.done():
            answered.set_result(None)

    async def finished(self) -> None:
        """Waits for what the work still does after its answer; raises what it raises."""
        task = self._task
        if task is None:
            return
        if not task.done():
            await asyncio.shield(task)
        elif not task.cancelled() and (error := task.exception()) is not None:
            raise error

    def land(self, news: News | None) -> None:
        """Tells the others with this record that it is over."""
        flight = self._flight
        if flight is not None:
            self._flight = None
            flights = self.engine.flights
            record = self.passage.id
            if flights.get(record) is flight:
                del flights[record]
            flight.land(news)

    def lose(self) -> None:
        """Tells the handler and the others: a lost one that runs on must not hold anybody up."""
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waits
            self.engine.loop.call_soon_threadsafe(self.land, None)
        self.execution.lose()

    async def _execute(self, work: Work) -> None:
        passage = self.passage
        granted, self._granted = self._granted, None
        assert granted is not None  # noqa: S101 - `drive` has just seen it
        try:
            # The start rule holds because nothing is awaited between this and the handler's start.
            action = passage.done(granted)
            while action not in (EXECUTE, ANSWER):
                action = await self._advance(action)
            if action == ANSWER:
                await self.conclude(action)
                return
            self.execution = Execution(passage, self.engine, self.rules)
            self._is_executing = True
            CURRENT.set(self.execution)
            keeper().keep(self, self.rules.lease)
            await self._run(work)
        finally:
            self._leave()

    async def _run(self, work: Work) -> None:
        passage = self.passage
        try:
            await work.run(self)
        except asyncio.CancelledError:
            # The loop is ending: what became of the operation is not known, so its claim stays.
            raise
        except BaseException as error:
            if passage.action == EXECUTE:
                self.error = error
                await self.conclude(passage.broken())
                if isinstance(error, Exception):
                    return
            raise
        if passage.action == EXECUTE:
            await self.conclude(passage.broken())

    def _advance(self, action: int) -> Awaitable[int]:
        """Does what an action asks for; gives the next one."""
        if action == STORE:
            step = self.passage.step()
            kind = step.kind
            if kind == CLAIM:
                return self._claim(step)
            return self._settle(step) if kind == SETTLE else self._perform(step)
        if action == WAIT:
            return self._wait()
        if action == PROBE:
            return self._ask_probe()
        message = f"the passage asks for {action}, which is the caller's part"
        raise RuntimeError(message)

    async def _perform(self, step: Step) -> int:
        if step.kind == RELEASE:
            await self._roll_back()
            keeper().let_go(self)
            await self.engine.perform(step)
            self.land(None)
        else:
            await self.engine.perform(step)
        return self.passage.done(step)

    async def _claim(self, step: Step) -> int:
        """Claims, or takes what another request of this loop was told.

        Before there is a task of its own, it stops at a grant, which that task takes.
        """
        engine = self.engine
        flights = engine.flights
        record = step.id
        while self._flight is None:
            flight = flights.get(record)
            if flight is None:
                flights[record] = self._flight = Flight()
            elif flight.holder is not None:
                return self.passage.told(flight.holder)
            else:
                news = await flight.follow(engine.loop)
                if news is not None:
                    return self.passage.told(news)
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
            self._flight.hold(step.news())
            if self.answered is None:
                self._granted = step
                return STORE
        else:
            if verdict >= UNAVAILABLE:
                report(step)
            self._give_permit_back()
            self.land(step.news())
        return self.passage.done(step)

    async def _settle(self, step: Step) -> int:
        if self._is_transactional():
            if self.passage.keeps and self.execution.is_settled_by_hand:
                await self._roll_back()
                return await self._confirm(step)
            if self.passage.commits and self.execution.transaction is not None:
                return await self._commit(step, self.execution.transaction)
            await self._roll_back()
        engine = self.engine
        waiting = engine.store.perform(step)
        if waiting is not None:
            await waiting
        verdict = step.verdict
        if verdict in (UNAVAILABLE, INTERNAL):
            verdict = await self._settle_again(step)
        if verdict == OK:
            keeper().let_go(self)
            self.land(step.news() if self._is_awaited() else None)
        elif verdict in (FENCED, CORRUPT):
            keeper().let_go(self)
            self.land(None)
        else:
            # Neither heartbeat nor flight may end before the result is in the store.
            report(step)
        return self.passage.done(step)

    # Settlements in transactions

    def _is_transactional(self) -> bool:
        execution = self.execution if self._is_executing else None
        return execution is not None and (
            execution.is_settled_by_hand or execution.transaction is not None
        )

    async def _commit(self, step: Step, transaction: OpenTransaction) -> int:
        """Settles in the handler's transaction, and commits that."""
        keeper().let_go(self)
        committed = await transaction.commit(step, self.rules.settle_timeout)
        if committed is None:
            return self.passage.uncommitted()
        if not committed:
            return await self._confirm(step)
        step.succeed()
        self.land(step.news() if self._is_awaited() else None)
        return self.passage.done(step)

    async def _confirm(self, step: Step) -> int:
        """Asks the store what became of a settlement in a transaction."""
        keeper().let_go(self)
        looked = Step.lookup(step.id)
        await self._until_told(looked)
        action = self.passage.confirmed(looked)
        if action == ANSWER:
            self.land(looked.news() if self._is_awaited() else None)
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
        """Performs a step again and again, within the time to settle in."""
        loop = self.engine.loop
        until = loop.time() + self.rules.settle_timeout
        pause = SETTLE_PAUSE_MIN
        if step.verdict == PENDING:
            await self.engine.perform(step)
        while step.verdict in (UNAVAILABLE, INTERNAL) and (left := until - loop.time()) > 0:
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 2, SETTLE_PAUSE_MAX)
            step.again()
            await self.engine.perform(step)
        return step.verdict

    def _is_awaited(self) -> bool:
        return self._flight is not None and bool(self._flight.waiters)

    async def _wait(self) -> int:
        """Waits for the end of somebody's claim, together with everybody else in this loop."""
        engine, passage, rules = self.engine, self.passage, self.rules
        record = passage.id
        flight = engine.flights.get(record)
        if engine.waiting >= rules.waiters_total_max or (
            flight is not None
            and flight.waiters is not None
            and len(flight.waiters) >= rules.waiters_max
        ):
            return passage.waiters_full()
        if flight is None:
            engine.flights[record] = flight = Flight(passage.holder)
            waiter = flight.wait(engine.loop)
            engine.keep_vigil(record, flight, rules.claim_timeout)
        else:
            waiter = flight.wait(engine.loop)
        engine.waiting += 1
        timer = engine.loop.call_later(passage.wait, expire, waiter)
        try:
            news = await waiter
        except WaitOver:
            return passage.wait_over()
        finally:
            engine.waiting -= 1
            timer.cancel()
            flight.leave(waiter)
        return passage.woken(None if news is None or news.is_held else news)

    async def _ask_probe(self) -> int:
        passage = self.passage
        if self._probe is None:
            return passage.probed(None)
        try:
            found = self._probe(Orphan(passage))
            if inspect.isawaitable(found):
                found = await asyncio.wait_for(found, PROBE_TIMEOUT)
        except Exception:
            logger.exception("the probe failed; nothing is known of the orphan")
            return passage.probed(None)
        if found is None:
            return passage.probed(None)
        if found is False:
            return passage.probed(False)
        return passage.probed(True, found.status_code, found.raw_headers, found.body)

    def _end(self) -> None:
        """The passage has its answer: lets go of what it holds, but for what goes on behind."""
        behind = self.passage.behind()
        if behind is not None:
            self._behind = True
            self.engine.behind(behind, self, settles=behind.kind == SETTLE)

    def _leave(self) -> None:
        """The handler's task is over."""
        if self._task is not None:
            self.engine.tasks.discard(self._task)
        if self._is_transactional() and not self._is_concluded:
            self.engine.spawn(self._roll_back())  # The loop is ending, and nobody commits any more.
        if self._is_handed_over:
            return  # Whoever concludes it lets go.
        self._let_go()
        answered = self.answered
        if answered is not None and not answered.done():
            # Without an answer, because the loop is ending.
            answered.cancel()

    def _let_go(self) -> None:
        if not self._behind:
            keeper().let_go(self)
            self.land(None)
        self._give_permit_back()

    def _abandon(self) -> None:
        """The client left before the handler was started."""
        behind = self.passage.abandon()
        self.land(None)
        self._give_permit_back()
        if behind is not None:
            self.engine.behind(behind, self, settles=False)

    def _give_permit_back(self) -> None:
        if self._holds_permit:
            self._holds_permit = False
            self.engine.executions -= 1


SETTLE_PAUSE_MIN = 0.02
SETTLE_PAUSE_MAX = 0.5
PROBE_TIMEOUT = 10.0
