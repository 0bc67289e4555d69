"""Renews leases from a separate thread.

A handler that blocks its event loop, as an `async def` that calls a blocking client does, would
otherwise starve the renewal of its lease, and run a second time elsewhere. Leases that are due
together are renewed together: a hundred of them are one commit, not a hundred.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Protocol

from ._idemptx import FENCED, OK, PENDING, UNAVAILABLE, Leases
from ._reports import report_renewal

if TYPE_CHECKING:
    from ._idemptx import Exchange, Step
    from ._store import Store

__all__ = ["LeaseHolder", "LeaseRenewer", "lease_renewer", "reset_lease_renewer"]

logger = logging.getLogger("idemptx")


class LeaseHolder(Protocol):
    """The execution that a lease belongs to."""

    @property
    def store(self) -> Store:
        """The store that granted the lease."""

    @property
    def exchange(self) -> Exchange:
        """The exchange that the lease was granted to."""

    def lose(self) -> None:
        """Marks the execution as lost."""


class LeaseRenewer:
    """Renews the leases of running handlers, when `Leases` says."""

    def __init__(self) -> None:
        self._leases = Leases()
        self._sooner = threading.Event()
        self._starting = threading.Lock()
        self._is_running = False
        self._renewing: set[Store] = set()

    def add(self, holder: LeaseHolder) -> None:
        """Renews the lease of the holder's exchange until `remove`."""
        if self._leases.add(holder.exchange, holder):
            self._sooner.set()
        if not self._is_running:
            self._start()

    def remove(self, holder: LeaseHolder) -> None:
        """Renews no more."""
        self._leases.remove(holder.exchange)

    def _start(self) -> None:
        with self._starting:
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name="idemptx-leases", daemon=True).start()

    def _run(self) -> None:
        while True:
            left = self._leases.plan()
            is_early = self._sooner.wait(IDLE_MAX if left is None else left)
            self._sooner.clear()
            if is_early:
                continue
            if left is None:
                with self._starting:
                    if not self._leases:
                        self._is_running = False
                        return
            by_store: dict[Store, list[tuple[LeaseHolder, Step]]] = {}
            for holder, step in self._leases.take_due():
                by_store.setdefault(holder.store, []).append((holder, step))
            for store, renewals in by_store.items():
                if store in self._renewing:
                    self._note(renewals, "the store has not answered the last renewals yet")
                    continue
                self._renewing.add(store)
                # A thread for each store, so that one that is silent holds up no other.
                threading.Thread(
                    target=self._renew, args=(store, renewals), name="idemptx-renewal", daemon=True
                ).start()

    def _renew(self, store: Store, renewals: list[tuple[LeaseHolder, Step]]) -> None:
        failure = ""
        try:
            store.renew([step for _, step in renewals])
        except Exception as error:  # noqa: BLE001 - logged, and tried again
            failure = str(error)
        finally:
            self._renewing.discard(store)
        self._note(renewals, failure)
        # What failed is due again before the next look that was planned.
        self._sooner.set()

    def _note(self, renewals: list[tuple[LeaseHolder, Step]], failure: str) -> None:
        for _, step in renewals:
            if step.verdict == PENDING:
                step.fail(UNAVAILABLE, failure)
            lost = self._leases.renewed(step)
            if lost is not None:
                lost.lose()
                logger.warning("an execution lost its lease; what it still does is in vain")
            elif step.verdict not in (OK, FENCED):
                report_renewal(step)


def lease_renewer() -> LeaseRenewer:
    """The lease renewer of this process."""
    return _Current.renewer


def reset_lease_renewer() -> None:
    """Starts over after a fork: thread and leases belong to the parent."""
    _Current.renewer = LeaseRenewer()


class _Current:
    renewer = LeaseRenewer()


IDLE_MAX = 60.0
