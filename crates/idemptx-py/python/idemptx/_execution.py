"""What a handler sees of the execution it is part of."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ._idemptx import Passage

__all__ = ["CURRENT", "Directive", "Execution", "current_execution"]

Directive = Literal["store", "release", "unknown"]


class Execution:
    """The execution that a handler runs in."""

    __slots__ = ("_lost", "_passage", "directive")

    def __init__(self, passage: Passage) -> None:
        self._passage = passage
        self._lost = False
        self.directive: Directive | None = None

    @property
    def key(self) -> str:
        """The client's key, quotes and escapes undone."""
        return self._passage.key

    @property
    def attempt(self) -> int:
        """Which execution of this operation it is: 1, or more after an orphan was taken over."""
        return self._passage.attempt

    @property
    def token(self) -> str:
        """The random token of this execution's claim."""
        return self._passage.token

    @property
    def fence(self) -> int:
        """A number greater than that of any earlier execution that may still be running.

        Give it to systems that can refuse a stale writer.
        """
        return self._passage.fence

    @property
    def is_lost(self) -> bool:
        """Whether somebody took the operation over: what this handler still does is in vain."""
        return self._lost

    def derive(self, label: str) -> str:
        """A key for a call to another system, named by `label`.

        It depends on scope, key and label (and the policy's secret) alone: every attempt derives
        the same, so a downstream system that honours keys executes once, however often we do.
        """
        return self._passage.derive(label)

    def direct(self, outcome: Directive) -> None:
        """Says what becomes of the answer, whatever its status.

        `store` keeps it, `release` lets the next request execute, and `unknown` refuses retries
        until somebody has found out. An `Idempotency-Outcome` header in the response does the same
        and wins.
        """
        if outcome not in ("store", "release", "unknown"):
            message = f"an execution is directed to store, release or unknown, not {outcome!r}"
            raise ValueError(message)
        self.directive = outcome

    def lose(self) -> None:
        """Notes that the lease is lost; called by the driver."""
        self._lost = True

    def __repr__(self) -> str:
        """Without the key, which may be a secret between the client and us."""
        return f"<Execution attempt={self.attempt} fence={self.fence}>"


def current_execution() -> Execution | None:
    """The execution that the calling handler is part of; `None` when it runs without a key."""
    return CURRENT.get()


CURRENT: ContextVar[Execution | None] = ContextVar("idemptx.execution", default=None)
