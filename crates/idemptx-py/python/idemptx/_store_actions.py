"""The actions of an exchange on its store: claim, settle, wait, release, probe."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ._engine import TRANSIENT
from ._idemptx import (
    ANSWER,
    CLAIM,
    CORRUPT,
    FENCED,
    FULL,
    GRANTED,
    HELD,
    OK,
    PENDING,
    PROBE,
    RELEASE,
    RENEW,
    SETTLE,
    STORE,
    UNAVAILABLE,
    WAIT,
    Step,
    Update,
)
from ._lease_renewer import lease_renewer
from ._orphan import ask_probe
from ._reports import report
from ._waiting import WaitOver, expire, leave_with_client

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive

    from ._engine import Engine
    from ._execution import Execution, ExecutionTransaction
    from ._idemptx import Exchange, Rules
    from ._orphan import Orphan
    from ._outcomes import Observer
    from ._store import Store

__all__ = ["StoreActions"]

logger = logging.getLogger("idemptx")


class StoreActions:
    """Performs an exchange's actions, with the resources that it holds in this process."""

    execution: Execution | None = None
    error: BaseException | None = None
    _granted: Step | None = None
    _stops_at_grant = True
    _leads = False
    _holds_permit = False
    _is_renewed = False
    _has_deferred = False
    _body_is_whole: bool | None = None
    """Whether the body that flowed to the client was whole, once it has ended."""
    _freed: Future[None] | None = None
    """Resolves once nothing holds the key for the sake of such a body any more."""

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
        self.engine = engine
        self.rules = rules
        self.exchange = exchange
        self._operation = operation
        self._observer = observer
        self._probe = probe
        self._receive = receive

    @property
    def store(self) -> Store:
        """The store of the claim, for the lease renewer."""
        return self.engine.store

    def complete(self, update: Update | None) -> None:
        """Wakes the other requests for this record with its final state."""
        if self._leads:
            self._leads = False
            self.engine.coordinator.complete(self.exchange.id, update)

    def _complete_with(self, step: Step) -> None:
        """Wakes the other requests for this record with its state after a step."""
        if self._leads:
            self._leads = False
            self.engine.coordinator.conclude(step)

    def lose(self) -> None:
        """Marks the execution as lost and wakes the requests that wait for it."""
        with suppress(RuntimeError):  # the loop has ended, and with it every waiter
            self.engine.loop.call_soon_threadsafe(self.complete, None)
        if self.execution is not None:
            self.execution.lose()

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
        if step.kind in (RELEASE, RENEW):
            await self._roll_back()
        if step.kind == RELEASE:
            self._renew_no_more()
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
        while not self._leads:
            entry = engine.coordinator.enter(step)
            if entry is None:
                self._leads = True
                break
            update = entry if isinstance(entry, Update) else await entry
            if update is not None:
                return self.exchange.claim_shared(update)
        refusal = None
        if not self._holds_permit:
            if not engine.is_known and self.rules.refuses_unsafe_stores:
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
            engine.coordinator.announce(step)
            if self._stops_at_grant:
                self._granted = step
                return STORE
        else:
            if verdict >= UNAVAILABLE:
                report(step)
            self._give_permit_back()
            self._complete_with(step)
        return self.exchange.done(step)

    async def _settle(self, step: Step) -> int:
        execution = self.execution
        if execution is not None and execution.is_transactional:
            if self.exchange.keeps and execution.is_settled_by_hand:
                await self._roll_back()
                return await self._confirm(step)
            if self.exchange.commits and execution.transaction is not None:
                return await self._commit(step, execution.transaction)
            await self._roll_back()
        until = self.engine.loop.time() + self.rules.settle_timeout
        waiting = self.engine.store.perform(step)
        if waiting is not None:
            await waiting
        verdict = step.verdict
        if verdict in TRANSIENT:
            verdict = await self._settle_again(step, until)
        if verdict == OK:
            self._renew_no_more()
            self._complete_with(step)
        elif verdict in (FENCED, CORRUPT):
            self._renew_no_more()
            self.complete(None)
        else:
            # Neither renewal nor single-flight entry may end before the result is in the store.
            report(step)
        return self.exchange.done(step)

    def _renew_no_more(self) -> None:
        if self._is_renewed:
            self._is_renewed = False
            lease_renewer().remove(self)

    # Settlements in transactions

    async def _commit(self, step: Step, transaction: ExecutionTransaction) -> int:
        """Settles in the handler's transaction and commits it."""
        self._renew_no_more()
        committed = await transaction.commit(step, self.rules.settle_timeout)
        if committed is None:
            return self.exchange.uncommitted()
        if not committed:
            return await self._confirm(step)
        step.succeed()
        self._complete_with(step)
        return self.exchange.done(step)

    async def _confirm(self, step: Step) -> int:
        """Looks up the result of a settlement in a transaction."""
        self._renew_no_more()
        looked = Step.lookup(step.id)
        await self._until_told(looked, self.engine.loop.time() + self.rules.settle_timeout)
        action = self.exchange.confirmed(looked)
        if action == ANSWER:
            self._complete_with(looked)
        elif looked.verdict == HELD:
            logger.error("the handler's transaction was not committed, or is on another database")
        return action

    async def _roll_back(self) -> None:
        if self.execution is not None and self.execution.transaction is not None:
            await self.execution.transaction.roll_back(self.rules.settle_timeout)

    async def _settle_again(self, step: Step, until: float) -> int:
        if self.engine.loop.time() < until:
            await self.engine.store.retry(step)
        return await self._until_told(step, until)

    async def _until_told(self, step: Step, until: float) -> int:
        """Repeats a step until it has a verdict; none begins after that time."""
        loop = self.engine.loop
        pause = SETTLE_PAUSE_MIN
        if step.verdict == PENDING:
            await self.engine.perform(step)
        while step.verdict in TRANSIENT and (left := until - loop.time()) > 0:
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 2, SETTLE_PAUSE_MAX)
            step.reset()
            await self.engine.perform(step)
        return step.verdict

    async def _wait(self) -> int:
        """Waits for the end of another claim, sharing one watch with this loop's other waiters."""
        engine, exchange = self.engine, self.exchange
        place = engine.coordinator.wait(exchange)
        if place is None:
            return exchange.waiters_full()
        if place.watches:
            engine.watch_record(exchange.id, exchange.holder, self.rules.claim_timeout)
        waiter = place.update
        timer = engine.loop.call_later(exchange.wait, expire, waiter)
        leaving = engine.spawn(leave_with_client(waiter, self._receive))
        try:
            update = await waiter
        except WaitOver:
            return exchange.wait_over()
        finally:
            timer.cancel()
            leaving.cancel()
            place.leave()
        return exchange.woken(None if update is None or update.is_held else update)

    async def _ask_probe(self) -> int:
        exchange = self.exchange
        if self._probe is None:
            return exchange.probed(None)
        found = await ask_probe(self.engine, exchange, self._probe)
        if found is None:
            return exchange.probed(None)
        if found is False:
            return exchange.probed(False)
        return exchange.probed(True, found.status_code, found.raw_headers, found.body)

    def _end(self) -> None:
        """Notes the answer, and hands unconfirmed work to the engine."""
        self._observer.note(self.exchange, self._operation, self.error)
        deferred = self.exchange.deferred()
        if deferred is not None:
            self._has_deferred = True
            self.engine.confirm_later(deferred, self._end_deferred)
        elif self.exchange.flows:
            self._has_deferred = True
            self._freed = self.engine.loop.create_future()
            if self._body_is_whole is not None:
                self._give_claim_up(whole=self._body_is_whole)

    def body_ended(self, *, whole: bool) -> None:
        """Notes the end of a body that flows to the client; only the first one counts."""
        if self._body_is_whole is None:
            self._body_is_whole = whole
            if self.exchange.flows:
                self._give_claim_up(whole=whole)

    def _give_claim_up(self, *, whole: bool) -> None:
        self.engine.confirm_later(self.exchange.body_ended(whole), self._end_deferred)

    async def body_freed(self) -> None:
        """Waits until the client may have the end of a body that flows to it.

        A request that it sends then finds the key as this one has left it, unless the store takes
        longer than a settlement may.
        """
        if self._freed is not None:
            await asyncio.wait({self._freed}, timeout=self.rules.settle_timeout)

    def _end_deferred(self, update: Update | None) -> None:
        self._renew_no_more()
        self.complete(update)
        if self._freed is not None and not self._freed.done():
            self._freed.set_result(None)

    def _abandon(self) -> None:
        """Abandons the exchange because the client left before the handler was started."""
        deferred = self.exchange.abandon()
        self.complete(None)
        self._give_permit_back()
        if deferred is not None:
            self.engine.confirm_later(deferred, self._end_deferred)

    def _give_permit_back(self) -> None:
        if self._holds_permit:
            self._holds_permit = False
            self.engine.executions -= 1


SETTLE_PAUSE_MIN = 0.02
SETTLE_PAUSE_MAX = 0.5
