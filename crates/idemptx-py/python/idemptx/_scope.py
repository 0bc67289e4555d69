"""Scopes of keys, as computed by the application's function."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Scope

__all__ = ["Scoping"]


class Scoping:
    """The application's function, if its choice is one."""

    __slots__ = ("_function", "is_function")

    def __init__(self, choice: Any) -> None:
        self.is_function = callable(choice)
        self._function: Callable[[Request], Any] | None = choice if self.is_function else None

    def of(self, scope: Scope) -> str | Awaitable[str | None] | None:
        """The scope of a request; an awaitable if the function is asynchronous."""
        return self.of_request(Request(scope))

    def of_request(self, request: Request) -> str | Awaitable[str | None] | None:
        """Returns the scope of a request object."""
        if self._function is None:
            return None
        found = self._function(request)
        if inspect.isawaitable(found):
            return _later(found)
        return _text(found)


async def _later(found: Awaitable[Any]) -> str | None:
    return _text(await found)


def _text(found: Any) -> str | None:
    if found is None or isinstance(found, str):
        return found or None
    return str(found)
