"""One claim and one wake-up for all duplicates within an event loop.

The first request for a record leads: it alone asks the store. Others with the same record are
told what it was told, and wait until it is over. For a record that another process holds, one
vigil watches the store on behalf of all who wait.

Nothing here decides: news is fed to each request's own passage, as if it came from the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Iterable

    from ._idemptx import News

__all__ = ["Flight", "WaitOver", "expire"]


class Flight:
    """A record that is being claimed, executed or watched here."""

    __slots__ = ("_followers", "holder", "waiters")

    def __init__(self, holder: News | None = None) -> None:
        self.holder = holder
        """Who holds it; `None` while that is being asked."""
        # Most have none of either, so neither is made before it is needed.
        self._followers: list[Future[News | None]] | None = None
        self.waiters: set[Future[News | None]] | None = None

    def follow(self, loop: AbstractEventLoop) -> Future[News | None]:
        """Resolves to the store's verdict, or to `None`: ask again."""
        follower: Future[News | None] = loop.create_future()
        if self._followers is None:
            self._followers = []
        self._followers.append(follower)
        return follower

    def wait(self, loop: AbstractEventLoop) -> Future[News | None]:
        """Resolves to what became of the record, or to `None`: ask again."""
        waiter: Future[News | None] = loop.create_future()
        if self.waiters is None:
            self.waiters = set()
        self.waiters.add(waiter)
        return waiter

    def leave(self, waiter: Future[News | None]) -> None:
        """Waits no more."""
        if self.waiters is not None:
            self.waiters.discard(waiter)

    def hold(self, holder: News | None) -> None:
        """A claim is in force: tells those who asked meanwhile, and whoever asks from now on."""
        self.holder = holder
        followers, self._followers = self._followers, None
        # Those who waited for another claim have to judge this one for themselves.
        waiters, self.waiters = self.waiters, None
        _tell(followers, holder)
        _tell(waiters, holder)

    def land(self, news: News | None) -> None:
        """It is over: tells everybody."""
        _tell(self._followers, news)
        _tell(self.waiters, news)


class WaitOver(Exception):  # noqa: N818 - an end, not an error
    """Nobody waits any longer."""


def expire(waiter: Future[News | None]) -> None:
    """Ends its wait without news."""
    if not waiter.done():
        waiter.set_exception(WaitOver())


def _tell(listeners: Iterable[Future[News | None]] | None, news: News | None) -> None:
    for listener in listeners or ():
        if not listener.done():
            listener.set_result(news)
