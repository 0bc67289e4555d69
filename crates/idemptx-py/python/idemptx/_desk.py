"""SQLite and PostgreSQL, as one event loop gets at them.

The stores are the engine's own and wait in threads that never touch Python. Their finished steps
ring a bell, a descriptor that this loop watches, and are all taken at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from ._idemptx import Depot, Desk
from ._safety import Finding, SafetyReport, Severity

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Awaitable, Callable, Sequence

    from ._connections import Style
    from ._idemptx import Rules, Step

__all__ = ["DeskStore"]


class DeskStore:
    """Records in a store that has threads of its own."""

    def __init__(self, depot: Depot, *, refuses_transactions: str | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._depot = depot
        self.refuses_transactions = refuses_transactions
        self._desk = Desk(depot)
        try:
            self._loop.add_reader(self._desk.fileno(), self._desk.collect)
        except NotImplementedError:
            raise RuntimeError(NO_READERS) from None
        self._is_open = True

    def perform(self, step: Step) -> Awaitable[None] | None:
        """Leaves a step at the desk; the future resolves once it has its verdict."""
        future: Future[None] = self._loop.create_future()
        return None if self._desk.perform(step, future) else future

    async def retry(self, step: Step) -> None:
        """The stores' sessions mend themselves: what they lost is not there yet."""

    def renew(self, steps: Sequence[Step]) -> None:
        """All at once, which is one commit or one round trip."""
        self._desk.renew(steps)

    async def watch(self, record: bytes, wake: Callable[[], None]) -> object:
        """Has the store tell the end of a claim, whoever ends it."""
        future: Future[object] = self._loop.create_future()
        self._desk.watch(record, future, wake)
        return await future

    def expect(self, rules: Rules) -> None:
        """The shortest time-outs of all rules count."""
        self._desk.expect(rules.claim_timeout, rules.settle_timeout)

    def settle_statement(
        self, step: Step, style: Style, transaction: str | None
    ) -> tuple[str, Sequence[object] | dict[str, object]]:
        """A settlement for the application's own connection."""
        text, parameters = self._depot.settle_statement(step, style, transaction)
        if style == "numeric":
            return text, parameters
        return text, {f"p{number}": value for number, value in enumerate(parameters, 1)}

    async def check(self) -> SafetyReport:
        """Opens the store if it is not open yet, and asks it."""
        future: Future[object] = self._loop.create_future()
        self._desk.check(future)
        guarantee, found = cast("tuple[str, list[tuple[int, str]]]", await future)
        return SafetyReport(guarantee, [Finding(Severity(grade), text) for grade, text in found])

    async def close(self) -> None:
        """Lets go of the store, which is closed with its last loop."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._desk.fileno())
            self._desk.close()


NO_READERS = (
    "this event loop cannot watch a descriptor, as this store needs: on Windows run the "
    "application in a SelectorEventLoop"
)
