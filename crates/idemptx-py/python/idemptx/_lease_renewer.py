"""Renews leases from a separate thread.

A handler that blocks its event loop, as an `async def` that calls a blocking client does, would
otherwise starve the renewal of its lease, and run a second time elsewhere. Leases that are due
together are renewed together: a hundred of them are one commit, not a hundred.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Protocol

from ._idemptx import FENCED, OK

if TYPE_CHECKING:
    from ._idemptx import Exchange, Rules, Step, Update
    from ._store import Store

__all__ = ["LeaseHolder", "LeaseRenewer", "lease_renewer", "reset_lease_renewer"]

logger = logging.getLogger("idemptx")


EVERY_MAX = 1.0
IDLE_MAX = 60.0


class LeaseHolder(Protocol):
    """The execution that a lease belongs to."""

    @property
    def store(self) -> Store:
        """The store that granted the lease."""

    @property
    def rules(self) -> Rules:
        """The rules of the request."""

    @property
    def exchange(self) -> Exchange:
        """The exchange that makes renewals."""

    def lose(self) -> None:
        """Marks the execution as lost."""

    def complete(self, update: Update | None) -> None:
        """Wakes the other requests for the record with its final state."""


class LeaseRenewer:
    """Renews the leases of running handlers at a third of their terms."""

    def __init__(self) -> None:
        # Shared with the event loops' threads: single dictionary operations, which are atomic.
        self._due: dict[LeaseHolder, float] = {}
        self._every = EVERY_MAX
        self._sooner = threading.Event()
        self._starting = threading.Lock()
        self._is_running = False
        self._renewing: set[Store] = set()

    def add(self, holder: LeaseHolder, lease: float) -> None:
        """Renews a lease of `lease` seconds until `let_go`."""
        self._due[holder] = time.monotonic() + lease / 3
        if lease / 9 < self._every:
            self._every = lease / 9
            self._sooner.set()
        if not self._is_running:
            self._start()

    def remove(self, holder: LeaseHolder) -> None:
        """Renews no more."""
        self._due.pop(holder, None)

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
                due = [holder for holder, when in list(self._due.items()) if when <= now]
                for store in {holder.store for holder in due} - self._renewing:
                    self._renewing.add(store)
                    some = [it for it in due if it.store is store]
                    # A thread for each store, so that one that is silent holds up no other.
                    threading.Thread(
                        target=self._renew, args=(store, some), name="idemptx-renewal", daemon=True
                    ).start()
            elif now - idle_since > IDLE_MAX:
                with self._starting:
                    if not self._due:
                        self._is_running = False
                        self._every = EVERY_MAX
                        return

    def _renew(self, store: Store, holders: list[LeaseHolder]) -> None:
        began = time.monotonic()
        renewals: list[tuple[LeaseHolder, Step]] = []
        for holder in holders:
            try:
                renewals.append((holder, holder.exchange.renewal()))
            except Exception:
                self.remove(holder)
                logger.exception("a lease could not be renewed")
        failure: str | None = None
        try:
            store.renew([step for _, step in renewals])
        except Exception as error:  # noqa: BLE001 - logged, and tried again
            failure = str(error)
        finally:
            self._renewing.discard(store)
        for holder, step in renewals:
            self._note(holder, step, began, failure)

    def _note(self, holder: LeaseHolder, step: Step, began: float, failure: str | None) -> None:
        if holder not in self._due:
            return
        lease = holder.rules.lease
        if step.verdict == FENCED:
            self.remove(holder)
            holder.lose()
            logger.warning("an execution lost its lease; what it still does is in vain")
        elif step.verdict == OK:
            self._due[holder] = began + lease / 3
        else:
            logger.warning("a lease could not be renewed: %s", failure or step.failure)
            # Soon again: there are two thirds of the term left.
            self._due[holder] = began + lease / 9


def lease_renewer() -> LeaseRenewer:
    """The lease renewer of this process."""
    return _Current.renewer


def reset_lease_renewer() -> None:
    """Starts over after a fork: thread and leases belong to the parent."""
    _Current.renewer = LeaseRenewer()


class _Current:
    renewer = LeaseRenewer()
