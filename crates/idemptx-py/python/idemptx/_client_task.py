"""Work that the handler's task hands to the client's task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Awaitable, Callable

__all__ = ["ClientTask"]


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
