"""Heartbeats, from a thread of their own.

A handler that blocks its event loop, as an `async def` that calls a blocking client does, would
otherwise starve the renewal of its own lease, and run a second time elsewhere.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from ._idemptx import FENCED, OK

if TYPE_CHECKING:
    from ._driver import Driver

__all__ = ["Keeper", "forget_keeper", "keeper"]

logger = logging.getLogger("idemptx")


EVERY_MAX = 1.0
IDLE_MAX = 60.0


class Keeper:
    """Renews the leases of running handlers at a third of their terms."""

    def __init__(self) -> None:
        # Shared with the event loops' threads: single dictionary operations, which are atomic.
        self._due: dict[Driver, float] = {}
        self._every = EVERY_MAX
        self._sooner = threading.Event()
        self._starting = threading.Lock()
        self._is_running = False

    def keep(self, driver: Driver, lease: float) -> None:
        """Renews a lease of `lease` seconds until `let_go`."""
        self._due[driver] = time.monotonic() + lease / 3
        if lease / 9 < self._every:
            self._every = lease / 9
            self._sooner.set()
        if not self._is_running:
            self._start()

    def let_go(self, driver: Driver) -> None:
        """Renews no more."""
        self._due.pop(driver, None)

    def _start(self) -> None:
        with self._starting:
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name="idemptx-keeper", daemon=True).start()

    def _run(self) -> None:
        idle_since = time.monotonic()
        while True:
            self._sooner.wait(self._every)
            self._sooner.clear()
            now = time.monotonic()
            if self._due:
                idle_since = now
                for driver, due in list(self._due.items()):
                    if due <= now:
                        self._renew(driver)
            elif now - idle_since > IDLE_MAX:
                with self._starting:
                    if not self._due:
                        self._is_running = False
                        self._every = EVERY_MAX
                        return

    def _renew(self, driver: Driver) -> None:
        lease = driver.rules.lease
        # Soon again if it fails: there are two thirds of the term left.
        due = time.monotonic() + lease / 9
        try:
            step = driver.passage.renewal()
            driver.engine.store.renew(step)
        except Exception as error:  # noqa: BLE001 - one lease's trouble is not another's
            if driver in self._due:
                logger.warning("a lease could not be renewed: %s", error)
                self._due[driver] = due
            return
        if driver not in self._due:
            return
        if step.verdict == FENCED:
            self.let_go(driver)
            driver.execution.lose()
            logger.warning("an execution lost its lease; what it still does is in vain")
        elif step.verdict == OK:
            self._due[driver] = due - lease / 9 + lease / 3
        else:
            logger.warning("a lease could not be renewed: %s", step.failure)
            self._due[driver] = due


def keeper() -> Keeper:
    """The keeper of this process."""
    return _Current.keeper


def forget_keeper() -> None:
    """After a fork: the parent's thread is not here, and its leases are not ours."""
    _Current.keeper = Keeper()


class _Current:
    keeper = Keeper()
