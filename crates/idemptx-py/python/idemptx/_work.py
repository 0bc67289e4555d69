"""What a driver is given to do, and what it asks others to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Awaitable, Callable

    from ._driver import Driver
    from ._idemptx import Passage

__all__ = ["Errand", "Orphan", "Work"]


class Work(Protocol):
    """What is executed under a key."""

    async def run(self, driver: Driver) -> None:
        """Runs the handler, and calls `driver.conclude` with what the passage makes of its answer.

        May go on after that. An exception before it counts as a handler that broke down; it is
        found in `driver.error`.
        """


class Orphan:
    """An operation whose executor vanished, for the application's probe."""

    __slots__ = ("attempt", "derive", "key")

    def __init__(self, passage: Passage) -> None:
        self.key = passage.key
        self.attempt = passage.vanished_attempt
        self.derive: Callable[[str], str] = passage.derive
        """The key that the vanished execution derived for a label, to look its effect up by."""


class Errand:
    """What the client's task does for the handler's."""

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
        """It will not be done."""
        if not self.done.done():
            self.done.set_result(None)
