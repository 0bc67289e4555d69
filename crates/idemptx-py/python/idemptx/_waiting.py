"""The ends of a wait other than an update: its time, and its client."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import Future

    from starlette.types import Receive

    from ._idemptx import Update

__all__ = ["ClientLeft", "WaitOver", "expire", "leave_with_client"]


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
