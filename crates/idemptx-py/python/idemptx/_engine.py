"""State that all requests on one backend share within one event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ._idemptx import (
    ABSENT,
    CORRUPT,
    HELD,
    INTERNAL,
    OK,
    REFUSED,
    SETTLED,
    UNAVAILABLE,
    Step,
)
from ._lease_renewer import lease_renewer, reset_lease_renewer
from ._safety import Severity

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future, Task
    from collections.abc import AsyncGenerator, Callable, Coroutine

    from ._idemptx import Rules, Update
    from ._lease_renewer import LeaseHolder
    from ._safety import SafetyReport
    from ._single_flight import Entry
    from ._store import Store

__all__ = ["TRANSIENT", "Engine", "Engines", "drain", "start_task"]

R = TypeVar("R")

logger = logging.getLogger("idemptx")


def start_task(loop: AbstractEventLoop, coroutine: Coroutine[Any, Any, R]) -> Task[R]:
    """Starts a task, at once where Python has eager tasks (3.12)."""
    if EAGER:
        return asyncio.Task(coroutine, loop=loop, eager_start=True)  # type: ignore[call-arg]
    return loop.create_task(coroutine)


class Engine:
    """The requests in progress on one backend in one event loop."""

    def __init__(self, loop: AbstractEventLoop, store: Store, told: set[str]) -> None:
        self.loop = loop
        self.store = store
        self._told = told
        self.single_flight: dict[bytes, Entry] = {}
        self.executions = 0
        self.waiting = 0
        self.unconfirmed = 0
        self._unconfirmed_claims = 0
        self.is_closed = False
        self.drain_seconds = 0.0
        self._adopted: set[Rules] = set()
        self._report: Task[SafetyReport | None] | None = None
        self.tasks: set[Future[Any]] = set()
        """Tasks that only this set keeps alive; the code that adds one removes it again."""
        self._farewell = self._until_shutdown()
        # Its hooks make the loop finish it, and so close the connections, before the loop ends.
        with suppress(StopIteration):
            self._farewell.asend(None).send(None)

    def spawn(self, coroutine: Coroutine[Any, Any, R]) -> Task[R]:
        """Starts a background task and keeps it alive until it ends."""
        task = self.loop.create_task(coroutine)
        # A loop with eager tasks may have run it to its end already.
        if not task.done():
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        return task

    def adopt(self, rules: Rules) -> None:
        """Registers the rules of coming requests."""
        if rules not in self._adopted:
            self._adopted.add(rules)
            self.drain_seconds = max(self.drain_seconds, rules.drain)
            self.store.expect(rules)
            if self._report is None:
                self._report = self.spawn(self._check())

    async def known(self) -> None:
        """Waits until the store's guarantees are known."""
        if self._report is not None:
            await asyncio.shield(self._report)

    def refuses(self, rules: Rules) -> str | None:
        """Returns the reason a new claim is refused, if it is."""
        if self._report is not None and self._report.done():
            report = self._report.result()
            if report is not None and (
                report.is_fatal or (report.is_unsafe and rules.refuses_unsafe_stores)
            ):
                return f"this store is refused: {report.findings[0].text}"
        if self.executions >= EXECUTIONS_MAX:
            return f"{EXECUTIONS_MAX} requests are being executed, as many as one process may"
        if self.unconfirmed >= UNCONFIRMED_MAX:
            return f"{UNCONFIRMED_MAX} results wait for the store, as many as one process keeps"
        return None

    # Steps

    async def perform(self, step: Step) -> None:
        """Performs a step, and repeats it once if the connection was lost."""
        waiting = self.store.perform(step)
        if waiting is not None:
            await waiting
        if step.verdict == UNAVAILABLE:
            await self.store.retry(step)

    def confirm_later(self, step: Step, holder: LeaseHolder, *, settles: bool) -> None:
        """Repeats an unconfirmed step in the background, keeping lease and entry."""
        self.unconfirmed += 1
        self.spawn(self._confirm(step, holder, settles=settles))

    async def _confirm(self, step: Step, holder: LeaseHolder, *, settles: bool) -> None:
        pause = CONFIRM_PAUSE_MIN
        # A release is repeated for as long as its claim would live, a settlement without limit.
        until = self.loop.time() + holder.rules.lease
        try:
            while settles or self.loop.time() < until:
                step.reset()
                await self.perform(step)
                if step.verdict not in TRANSIENT:
                    break
                await asyncio.sleep(pause)
                pause = min(pause * 2, CONFIRM_PAUSE_MAX)
        finally:
            self.unconfirmed -= 1
            lease_renewer().remove(holder)
            holder.complete(step.update() if step.verdict == OK else None)
        if (
            step.verdict == OK
            and step.releases_unconfirmed
            and self._unconfirmed_claims < UNCONFIRMED_CLAIMS_MAX
        ):
            self._unconfirmed_claims += 1
            self._release_later(step, CONFIRM_PAUSE_MIN, until)

    def _release_later(self, step: Step, pause: float, until: float) -> None:
        """Releases again, ever more rarely, for as long as the lease would have lasted.

        A claim whose verdict was lost may be carried out after a release that found nothing.
        Uses a timer, which draining does not wait for.
        """
        left = until - self.loop.time()
        if left <= 0:
            self._unconfirmed_claims -= 1
            return
        again = partial(self._release_again, step, min(pause * 2, CONFIRM_PAUSE_MAX), until)
        self.loop.call_later(min(pause, left), lambda: self.spawn(again()))

    async def _release_again(self, step: Step, pause: float, until: float) -> None:
        step.reset()
        await self.perform(step)
        self._release_later(step, pause, until)

    # Waiting for what other processes hold

    def watch_record(self, record: bytes, entry: Entry, timeout: float) -> None:
        """Watches a record held by another process until it changes or no request waits."""
        self.spawn(self._watch_record(record, entry, timeout))

    async def _watch_record(self, record: bytes, entry: Entry, timeout: float) -> None:
        pause = WATCH_POLL_MIN
        update: Update | None = None
        watch: object = None
        try:
            while entry.waiters:
                rung = asyncio.Event()
                # Watch before the lookup, so that a change in between is not missed.
                with suppress(asyncio.TimeoutError):
                    watch = await asyncio.wait_for(self.store.watch(record, rung.set), timeout)
                step = Step.lookup(record)
                await self.perform(step)
                left = pause
                if step.verdict == SETTLED:
                    update = step.update()
                    return
                if step.verdict in (ABSENT, CORRUPT):
                    return
                if step.verdict == HELD:
                    if entry.holder is None or not step.is_held_as(entry.holder):
                        return
                    left = step.remaining
                pause = WATCH_POLL_MAX if watch is not None else min(pause * 2, WATCH_POLL_MAX)
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(rung.wait(), min(pause, left + WATCH_POLL_MIN))
        finally:
            del watch
            if self.single_flight.get(record) is entry:
                del self.single_flight[record]
            entry.complete(update)

    # The store's promises

    async def _check(self) -> SafetyReport | None:
        try:
            report = await self.store.check()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no verdict
            if UNREACHABLE not in self._told:
                self._told.add(UNREACHABLE)
                logger.warning("%s: %s", UNREACHABLE, error)
            self._report = None  # to be asked again
            self._adopted.clear()
            return None
        if UNREACHABLE in self._told:
            self._told.discard(UNREACHABLE)
            logger.warning("the store is reached again")
        for finding in report.findings:
            if finding.text in self._told:
                continue
            self._told.add(finding.text)
            level = logging.WARNING if finding.severity >= Severity.WARNING else logging.INFO
            logger.log(level, "%s", finding.text)
        return report

    # The end

    async def drain(self) -> None:
        """Waits until all background tasks have ended."""
        while tasks := {task for task in self.tasks if task is not asyncio.current_task()}:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Closes the store's connections before the loop ends."""
        self.is_closed = True
        await self.store.close()

    async def _until_shutdown(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.close()


class Engines:
    """A backend's engines: one for each event loop that uses it."""

    def __init__(self, open_store: Callable[[], Store]) -> None:
        self._open_store = open_store
        self._engines: list[Engine] = []
        self._told: set[str] = set()
        _ALL.add(self)

    def here(self) -> Engine:
        """The running loop's engine."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(NO_ASYNCIO) from None
        for engine in self._engines:
            if engine.loop is loop and not engine.is_closed:
                return engine
        # An ended loop does not unregister its engine.
        self._engines = [it for it in self._engines if not (it.is_closed or it.loop.is_closed())]
        engine = Engine(loop, self._open_store(), self._told)
        self._engines.append(engine)
        return engine

    async def close(self) -> None:
        """Closes the running loop's connections."""
        loop = asyncio.get_running_loop()
        for engine in [engine for engine in self._engines if engine.loop is loop]:
            # Results of running handlers are stored first; later requests have a new engine.
            self._engines.remove(engine)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(engine.drain(), engine.drain_seconds)
            await engine.close()

    def of_loop(self, loop: AbstractEventLoop) -> list[Engine]:
        """The engines that run in a loop: one, or none."""
        return [engine for engine in self._engines if engine.loop is loop]

    def forget(self) -> None:
        """Drops the engines after a fork: their connections belong to the parent."""
        self._engines = []


async def drain(timeout: float | None = None) -> bool:
    """Waits until no work continues in this event loop without a client.

    That is: handlers whose clients have left, and results that the store has not confirmed.
    Call it when the server has stopped, before the loop ends; what is not done within `timeout`
    seconds keeps its claim, and is an orphan once its lease has lapsed.
    Returns whether everything was done.
    """
    loop = asyncio.get_running_loop()
    until = None if timeout is None else time.monotonic() + timeout
    for engines in list(_ALL):
        for engine in engines.of_loop(loop):
            left = None if until is None else max(0.0, until - time.monotonic())
            try:
                await asyncio.wait_for(engine.drain(), left)
            except asyncio.TimeoutError:
                return False
    return True


def _after_fork() -> None:
    reset_lease_renewer()
    for engines in list(_ALL):
        engines.forget()


_ALL: weakref.WeakSet[Engines] = weakref.WeakSet()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

EAGER = sys.version_info >= (3, 12)
UNREACHABLE = "the store cannot be reached, or does not tell what it promises"
NO_ASYNCIO = "idemptx runs in an asyncio event loop: choose the asyncio worker of your server"
# After these a step may be taken again.
TRANSIENT = (UNAVAILABLE, INTERNAL, REFUSED)
EXECUTIONS_MAX = 10_000
UNCONFIRMED_MAX = 1_000
UNCONFIRMED_CLAIMS_MAX = 10_000
"""The largest number of claims with a lost verdict that are released again; others lapse."""
CONFIRM_PAUSE_MIN = 0.05
CONFIRM_PAUSE_MAX = 2.0
WATCH_POLL_MIN = 0.02
WATCH_POLL_MAX = 0.25
