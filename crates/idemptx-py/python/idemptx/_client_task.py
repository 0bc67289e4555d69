"""Work that a driver runs, and work that it hands to the client's task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Awaitable, Callable

    from ._driver import Driver
    from ._idemptx import Exchange

__all__ = ["ClientTask", "Orphan", "Work"]


class Work(Protocol):
    """A handler's call, executed under a key."""

    async def run(self, driver: Driver) -> None:
        """Runs the handler, and calls `driver.conclude` with what the exchange makes of its answer.

        May continue after that. An exception before it counts as a failed handler and is kept in
        `driver.error`.
        """


class Orphan:
    """An operation whose execution was lost, for the application's probe."""

    __slots__ = ("attempt", "derive", "key")

    def __init__(self, exchange: Exchange) -> None:
        self.key = exchange.key
        self.attempt = exchange.orphan_attempt
        self.derive: Callable[[str], str] = exchange.derive
        """Returns the key that the lost execution derived for a label, to find its effect."""


class ClientTask:
    """Work that the client's task does for the handler's task."""

    __slots__ = ("_job", "done")

    def __init__(self, job: Callable[[], Awaitable[Any]], done: Future[Any]) -> None:
        self._job = job
        self.done = done

    async def run(self) -> None:
        try:
            result = await self._job()
        except Exception as error:  # noqa: BLE001 - whoever sent us deals with it
            self.done.set_exception(error)
        else:
            self.done.set_result(result)
        finally:
            self.forget()

    def forget(self) -> None:
        """Resolves the future without doing the work."""
        if not self.done.done():
            self.done.set_result(None)
