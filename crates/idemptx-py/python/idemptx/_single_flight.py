"""One claim and one wake-up for all duplicates within an event loop.

The first request for a record leads: it alone asks the store. Others with the same record share
its result and wait for its end. For a record that another process holds, one task watches the
store on behalf of all waiters.

Nothing here decides: an update is fed to each request's exchange as if it came from the store.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Iterable

    from starlette.types import Receive

    from ._idemptx import Update

__all__ = ["ClientLeft", "Entry", "WaitOver", "expire", "leave_with_client"]


class Entry:
    """A record that is being claimed, executed or watched here."""

    __slots__ = ("_followers", "holder", "waiters")

    def __init__(self, holder: Update | None = None) -> None:
        self.holder = holder
        """The holder of the claim; `None` while the store is asked."""
        # Most have none of either, so neither is made before it is needed.
        self._followers: list[Future[Update | None]] | None = None
        self.waiters: set[Future[Update | None]] | None = None

    def follow(self, loop: AbstractEventLoop) -> Future[Update | None]:
        """Resolves to the store's verdict, or to `None`, which means: ask again."""
        follower: Future[Update | None] = loop.create_future()
        if self._followers is None:
            self._followers = []
        self._followers.append(follower)
        return follower

    def wait(self, loop: AbstractEventLoop) -> Future[Update | None]:
        """Resolves to the record's final state, or to `None`, which means: ask again."""
        waiter: Future[Update | None] = loop.create_future()
        if self.waiters is None:
            self.waiters = set()
        self.waiters.add(waiter)
        return waiter

    def leave(self, waiter: Future[Update | None]) -> None:
        """Stops waiting."""
        if self.waiters is not None:
            self.waiters.discard(waiter)

    def hold(self, holder: Update | None) -> None:
        """Shares a granted claim with the requests that asked and those that will ask."""
        self.holder = holder
        followers, self._followers = self._followers, None
        # Those who waited for another claim have to judge this one for themselves.
        waiters, self.waiters = self.waiters, None
        _tell(followers, holder)
        _tell(waiters, holder)

    def complete(self, update: Update | None) -> None:
        """Resolves every waiter with the final state."""
        _tell(self._followers, update)
        _tell(self.waiters, update)


class WaitOver(Exception):  # noqa: N818 - an end, not an error
    """Raised into a waiter when its time is over."""


class ClientLeft(Exception):  # noqa: N818 - an end, not an error
    """Raised into a waiter whose client has left."""


async def leave_with_client(waiter: Future[Update | None], receive: Receive) -> None:
    """Ends a wait when its client leaves; servers report that, but cancel nothing."""
    with suppress(Exception):
        while (await receive())["type"] != "http.disconnect":
            pass
        if not waiter.done():
            waiter.set_exception(ClientLeft())


def expire(waiter: Future[Update | None]) -> None:
    """Ends a wait without an update."""
    if not waiter.done():
        waiter.set_exception(WaitOver())


def _tell(listeners: Iterable[Future[Update | None]] | None, update: Update | None) -> None:
    for listener in listeners or ():
        if not listener.done():
            listener.set_result(update)
