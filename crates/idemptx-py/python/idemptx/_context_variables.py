"""Context variables that a handler's task sets, brought back into the client's task."""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextvars import Context, ContextVar, Token

__all__ = ["ContextVariables"]


class ContextVariables:
    """The variables that change in the handler's task, from when this is made there.

    Layers outside, which run in the client's task, see what they would see if there were no other.
    """

    __slots__ = ("_known", "_tokens")

    def __init__(self) -> None:
        self._known = copy_context()
        self._tokens: dict[ContextVar[Any], Token[Any]] = {}

    def copy_from(self, context: Context) -> None:
        """Repeats here, in the client's task, what has changed up to a later context of the other.

        Nothing else is touched: layers outside set variables as well, while a response is sent.
        """
        known, self._known = self._known, context
        for variable, value in context.items():
            if known.get(variable, MISSING) is not value:
                self._tokens.setdefault(variable, variable.set(value))
        # A layer inside sets a variable for the time of a request, and takes it back at the end.
        for variable in [it for it in self._tokens if it not in context]:
            variable.reset(self._tokens.pop(variable))


MISSING: Any = object()
