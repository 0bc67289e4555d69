"""Renews leases from a separate thread.

A handler that blocks its event loop, as an `async def` that calls a blocking client does, would
otherwise starve the renewal of its lease, and run a second time elsewhere. Leases that are due
together are renewed together: a hundred of them are one commit, not a hundred.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from ._idemptx import FENCED, OK

if TYPE_CHECKING:
    from ._driver import Driver
    from ._engine import Store
    from ._idemptx import Step

__all__ = ["LeaseRenewer", "lease_renewer", "reset_lease_renewer"]

logger = logging.getLogger("idemptx")


EVERY_MAX = 1.0
IDLE_MAX = 60.0


class LeaseRenewer:
    """Renews the leases of running handlers at a third of their terms."""

    def __init__(self) -> None:
        # Shared with the event loops' threads: single dictionary operations, which are atomic.
        self._due: dict[Driver, float] = {}
        self._every = EVERY_MAX
        self._sooner = threading.Event()
        self._starting = threading.Lock()
        self._is_running = False

    def add(self, driver: Driver, lease: float) -> None:
        """Renews a lease of `lease` seconds until `let_go`."""
        self._due[driver] = time.monotonic() + lease / 3
        if lease / 9 < self._every:
            self._every = lease / 9
            self._sooner.set()
        if not self._is_running:
            self._start()

    def remove(self, driver: Driver) -> None:
        """Renews no more."""
        self._due.pop(driver, None)

    def _start(self) -> None:
        with self._starting:
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name="idemptx-leases", daemon=True).start()

    def _run(self) -> None:
        idle_since = time.monotonic()
        while True:
            self._sooner.wait(self._every)
            self._sooner.clear()
            now = time.monotonic()
            if self._due:
                idle_since = now
                due = [driver for driver, when in list(self._due.items()) if when <= now]
                for store in {driver.engine.store for driver in due}:
                    self._renew(store, [it for it in due if it.engine.store is store])
            elif now - idle_since > IDLE_MAX:
                with self._starting:
                    if not self._due:
                        self._is_running = False
                        self._every = EVERY_MAX
                        return

    def _renew(self, store: Store, drivers: list[Driver]) -> None:
        began = time.monotonic()
        steps = [driver.exchange.renewal() for driver in drivers]
        failure: str | None = None
        try:
            store.renew(steps)
        except Exception as error:  # noqa: BLE001 - one store's trouble is not another's
            failure = str(error)
        for driver, step in zip(drivers, steps, strict=True):
            self._note(driver, step, began, failure)

    def _note(self, driver: Driver, step: Step, began: float, failure: str | None) -> None:
        if driver not in self._due:
            return
        lease = driver.rules.lease
        if step.verdict == FENCED:
            self.remove(driver)
            driver.lose()
            logger.warning("an execution lost its lease; what it still does is in vain")
        elif step.verdict == OK:
            self._due[driver] = began + lease / 3
        else:
            logger.warning("a lease could not be renewed: %s", failure or step.failure)
            # Soon again: there are two thirds of the term left.
            self._due[driver] = began + lease / 9


def lease_renewer() -> LeaseRenewer:
    """The lease renewer of this process."""
    return _Current.renewer


def reset_lease_renewer() -> None:
    """Starts over after a fork: thread and leases belong to the parent."""
    _Current.renewer = LeaseRenewer()


class _Current:
    renewer = LeaseRenewer()
