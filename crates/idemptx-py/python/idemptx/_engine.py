"""State that all requests on one backend share within one event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ._idemptx import (
    ABSENT,
    CORRUPT,
    HELD,
    INTERNAL,
    OK,
    REFUSED,
    SETTLED,
    UNAVAILABLE,
    Confirmation,
    Coordinator,
    Step,
)
from ._lease_renewer import reset_lease_renewer
from ._safety import Severity

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future, Task, TimerHandle
    from collections.abc import AsyncGenerator, Callable, Coroutine

    from ._idemptx import MemoryStore, Rules, Update
    from ._safety import SafetyReport
    from ._store import Store

__all__ = ["NO_ASYNCIO", "TRANSIENT", "Engine", "Engines", "drain", "has_asyncio", "start_task"]

R = TypeVar("R")

logger = logging.getLogger("idemptx")


def start_task(loop: AbstractEventLoop, coroutine: Coroutine[Any, Any, R]) -> Task[R]:
    """Starts a task, at once where Python has eager tasks (3.12)."""
    if EAGER:
        return asyncio.Task(coroutine, loop=loop, eager_start=True)  # type: ignore[call-arg]
    return loop.create_task(coroutine)


class Settling(Protocol):
    """An exchange that draining waits for as for a task."""

    @property
    def settled(self) -> Future[None]:
        """Resolves once its result is with the store."""


class Engine:
    """The requests in progress on one backend in one event loop."""

    def __init__(self, loop: AbstractEventLoop, store: Store, told: set[str]) -> None:
        self.loop = loop
        self.store = store
        self.memory: MemoryStore | None = getattr(store, "memory", None)
        """Records in this process, to be replayed without a claim."""
        self._told = told
        self.coordinator = Coordinator(loop.create_future)
        self.executions = 0
        self._turns = asyncio.Semaphore(Confirmation.AT_ONCE_MAX)
        self.is_closed = False
        self.drain_seconds = 0.0
        self.adopted: set[Rules] = set()
        """The rules of the requests so far."""
        self._first_check: Task[None] | None = None
        self.is_known = False
        """True once the store's guarantees are known."""
        self._is_unsafe = False
        self._report: SafetyReport | None = None
        self._check_seconds = float("inf")
        self._next_check: TimerHandle | None = None
        self.probes: dict[bytes, Future[Any]] = {}
        """The calls of the application's probe, by the orphan's record."""
        self.tasks: set[Future[Any]] = set()
        """Tasks that only this set keeps alive; the code that adds one removes it again."""
        self.settling: set[Settling] = set()
        """Exchanges whose results are left to their clients' tasks."""
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
        """Registers rules that are not among those known, before their first request."""
        self.adopted.add(rules)
        self.drain_seconds = max(self.drain_seconds, rules.drain)
        self.store.expect(rules)
        self._check_seconds = min(self._check_seconds, rules.store_check or float("inf"))
        if self._first_check is None:
            self._first_check = self.spawn(self._check())

    async def known(self) -> None:
        """Waits until the store's guarantees are known."""
        if self._first_check is not None:
            await asyncio.shield(self._first_check)

    def refuses(self, rules: Rules) -> str | None:
        """Returns the reason a new claim is refused, if it is."""
        if self._is_unsafe:
            report = self._report
            if report is not None and (report.is_fatal or rules.refuses_unsafe_stores):
                return f"this store is refused: {report.findings[0].text}"
        if self.executions >= EXECUTIONS_MAX:
            return f"{EXECUTIONS_MAX} requests are being executed, as many as one process may"
        if self.coordinator.is_full:
            return "as many results wait for the store as one process keeps"
        return None

    # Steps

    async def perform(self, step: Step) -> None:
        """Performs a step, and repeats it once if the connection was lost."""
        waiting = self.store.perform(step)
        if waiting is not None:
            await waiting
        if step.verdict == UNAVAILABLE:
            await self.store.retry(step)

    def confirm_later(self, step: Step, end: Callable[[Update | None], None]) -> None:
        """Repeats an unconfirmed step in the background; `end` gets the record's state after it."""
        confirmation = self.coordinator.admit(step)
        if confirmation is None:
            end(None)
        else:
            self.spawn(self._confirm(confirmation, step, end))

    async def _confirm(
        self, confirmation: Confirmation, step: Step, end: Callable[[Update | None], None]
    ) -> None:
        pause: float | None = 0.0
        lingers = False
        try:
            while pause is not None:
                step.reset()
                async with self._turns:
                    await self.perform(step)
                pause = confirmation.attempted(step)
                if pause is not None and step.verdict == OK:
                    # A confirmed release is repeated by a timer, for which draining does not wait.
                    lingers = True
                    self.loop.call_later(pause, self._confirm_again, confirmation, step, end)
                    return
                if pause is not None:
                    await asyncio.sleep(pause)
        finally:
            end(step.update() if step.verdict == OK else None)
            if not lingers:
                confirmation.close()

    def _confirm_again(
        self, confirmation: Confirmation, step: Step, end: Callable[[Update | None], None]
    ) -> None:
        if not self.is_closed:
            self.spawn(self._confirm(confirmation, step, end))

    # Waiting for what other processes hold

    def watch_record(self, record: bytes, holder: Update, timeout: float) -> None:
        """Watches a record held by another process until it changes or no request waits."""
        self.spawn(self._watch_record(record, holder, timeout))

    async def _watch_record(self, record: bytes, holder: Update, timeout: float) -> None:
        pause = WATCH_POLL_MIN
        update: Update | None = None
        watch: object = None
        try:
            while self.coordinator.is_awaited(record):
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
                    if not step.is_held_as(holder):
                        return
                    left = step.remaining
                pause = WATCH_POLL_MAX if watch is not None else min(pause * 2, WATCH_POLL_MAX)
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(rung.wait(), min(pause, left + WATCH_POLL_MIN))
        finally:
            del watch
            self.coordinator.complete(record, update)

    # The store's promises

    async def _check(self) -> None:
        try:
            report = await asyncio.wait_for(self.store.check(), CHECK_LIMIT)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no verdict
            if UNREACHABLE not in self._told:
                self._told.add(UNREACHABLE)
                logger.warning("%s: %s", UNREACHABLE, error)
            if self._report is None:  # to be asked again
                self._first_check = None
                self.adopted.clear()
                return
        else:
            self._report, self._is_unsafe = report, report.is_unsafe
            self.is_known = True
            self._tell(report)
        if self._check_seconds < float("inf") and not self.is_closed:
            # Processes that started together shall not ask together.
            pause = self._check_seconds * random.uniform(0.75, 1.25)  # noqa: S311
            self._next_check = self.loop.call_later(pause, self._check_again)

    def _check_again(self) -> None:
        if not self.is_closed:
            self.spawn(self._check())

    def _tell(self, report: SafetyReport) -> None:
        """Logs what has come and what has gone since the last check, once each."""
        if UNREACHABLE in self._told:
            self._told.discard(UNREACHABLE)
            logger.warning("the store is reached again")
        for finding in report.findings:
            if finding.text in self._told:
                continue
            self._told.add(finding.text)
            level = logging.WARNING if finding.severity >= Severity.WARNING else logging.INFO
            logger.log(level, "%s", finding.text)
        for gone in self._told - {finding.text for finding in report.findings}:
            self._told.discard(gone)
            logger.info("not any more: %s", gone)

    # The end

    async def drain(self) -> None:
        """Waits until all background tasks have ended, and every result is with the store."""
        while tasks := {
            *(task for task in self.tasks if task is not asyncio.current_task()),
            *(driver.settled for driver in self.settling),
        }:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Closes the store's connections before the loop ends."""
        self.is_closed = True
        if self._next_check is not None:
            self._next_check.cancel()
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
        if not has_asyncio():
            raise RuntimeError(NO_ASYNCIO)
        loop = asyncio.get_running_loop()
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


def has_asyncio() -> bool:
    """True if the server runs the application in an asyncio event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


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
CHECK_LIMIT = 10.0
WATCH_POLL_MIN = 0.02
WATCH_POLL_MAX = 0.25
