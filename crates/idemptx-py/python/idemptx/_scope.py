"""Scopes of keys, as computed by the application's function."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ._idemptx import ANSWER, REFUSE

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from ._idemptx import Exchange, Rules

__all__ = ["Scoping"]


class Scoping:
    """The application's function of a request."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[Request], Any]) -> None:
        self._function = function

    @staticmethod
    def asks_for(rules: Rules, exchange: Exchange | None) -> bool:
        """True if a request has a valid key for a covered method, and lacks only its scope."""
        if exchange is None or exchange.action != ANSWER:
            return False
        if exchange.answer == REFUSE:
            return exchange.refusal().code == "scope-unresolved"
        return rules.is_shadow

    async def of(self, request: Request) -> str | None:
        """Returns the scope of a request; `None` if it is unresolved."""
        found = self._function(request)
        return _text(await found if inspect.isawaitable(found) else found)


def _text(found: Any) -> str | None:
    """The scope's text; `None` for what identifies no principal.

    The text of other objects may be an address, or the same for everyone.
    """
    if isinstance(found, str):
        return found or None
    if isinstance(found, UUID) or (isinstance(found, int) and not isinstance(found, bool)):
        return str(found)
    if not found:
        return None
    message = f"a scope is a str, an int or a UUID, not {type(found).__name__}"
    raise TypeError(message)
