"""The interface of stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ._idemptx import Rules, Step
    from ._safety import SafetyReport

__all__ = ["Store"]


class Store(Protocol):
    """A store of records, as one event loop uses it."""

    def perform(self, step: Step) -> Awaitable[None] | None:
        """Performs a step; the returned future resolves once the step has its verdict."""

    async def retry(self, step: Step) -> None:
        """Repeats a failed step once, if a new connection may help."""

    def renew(self, steps: Sequence[Step]) -> None:
        """Performs renewals from the lease renewer's thread, and waits for them."""

    async def watch(self, record: bytes, wake: Callable[[], None]) -> object:
        """Calls `wake` once the claim has ended, as long as the returned object is kept.

        `None` means that this store cannot signal the end.
        """

    def expect(self, rules: Rules) -> None:
        """Applies the time limits of rules, before the first step under them."""

    async def check(self) -> SafetyReport:
        """Returns the store's guarantees and findings; `OSError` if it cannot be reached."""

    async def close(self) -> None:
        """Closes the connections; a later step opens new ones."""
