"""The compiled stores, as one event loop uses them.

The Rust stores wait in threads that never touch Python. Finished steps make a descriptor readable
that this loop watches, and are collected together.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, cast

from ._idemptx import LoopHandle, NativeStore
from ._safety import Finding, SafetyReport, Severity

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Awaitable, Callable, Sequence

    from ._connections import Style
    from ._idemptx import Rules, Step

__all__ = ["LoopStore", "PerProcessStore"]


class PerProcessStore:
    """A compiled store, made again after a fork: threads and locks do not survive it."""

    def __init__(self, make: Callable[[], NativeStore]) -> None:
        self._make = make
        self._made = (os.getpid(), make())

    def here(self) -> NativeStore:
        """The store of this process."""
        process, native_store = self._made
        if process != os.getpid():
            native_store = self._make()
            self._made = (os.getpid(), native_store)
        return native_store


class LoopStore:
    """Records in a Rust store with separate threads."""

    def __init__(self, native_store: NativeStore, *, refuses_transactions: str | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._native_store = native_store
        self.refuses_transactions = refuses_transactions
        self._handle = LoopHandle(native_store)
        self._receiver: _Receiver | None = None
        try:
            self._loop.add_reader(self._handle.fileno(), self._handle.collect)
        except NotImplementedError:
            self._receiver = _Receiver(self._loop, self._handle)
        self._is_open = True

    def perform(self, step: Step) -> Awaitable[None] | None:
        """Starts a step; the future resolves once it has its verdict."""
        future: Future[None] = self._loop.create_future()
        return None if self._handle.perform(step, future) else future

    async def retry(self, step: Step) -> None:
        """Does nothing: the stores repeat and reconnect by themselves."""

    def renew(self, steps: Sequence[Step]) -> None:
        """Renews all leases at once, which is one commit or one round trip."""
        self._handle.renew(steps)

    async def watch(self, record: bytes, wake: Callable[[], None]) -> object:
        """Watches a claim until it ends, in this process or another."""
        future: Future[object] = self._loop.create_future()
        self._handle.watch(record, future, wake)
        return await future

    def expect(self, rules: Rules) -> None:
        """Applies time limits; the shortest of all rules counts."""
        self._handle.expect(rules.claim_timeout, rules.settle_timeout)

    def settle_statement(
        self, step: Step, style: Style, transaction: str | None
    ) -> tuple[str, Sequence[object] | dict[str, object]]:
        """A settlement for the application's own connection."""
        text, parameters = self._native_store.settle_statement(step, style, transaction)
        if style == "numeric":
            return text, parameters
        return text, {f"p{number}": value for number, value in enumerate(parameters, 1)}

    async def check(self) -> SafetyReport:
        """Opens the store if it is not open yet, and asks it."""
        future: Future[object] = self._loop.create_future()
        self._handle.check(future)
        guarantee, found = cast("tuple[str, list[tuple[int, str]]]", await future)
        return SafetyReport(guarantee, [Finding(Severity(grade), text) for grade, text in found])

    async def close(self) -> None:
        """Releases the store, which is closed with its last loop."""
        if self._is_open:
            self._is_open = False
            if self._receiver is None:
                self._loop.remove_reader(self._handle.fileno())
            else:
                await self._receiver.close()
            self._handle.close()


class _Receiver:
    """Receives wake-ups in a loop that cannot watch a descriptor: the Proactor loop of Windows."""

    def __init__(self, loop: AbstractEventLoop, handle: LoopHandle) -> None:
        # A duplicate, which may be closed by itself.
        self._socket = socket.fromfd(handle.fileno(), socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._loop = loop
        self._handle = handle
        self._task = loop.create_task(self._receive())

    async def _receive(self) -> None:
        while await self._loop.sock_recv(self._socket, WAKES_MAX):
            self._handle.collect()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        self._socket.close()


WAKES_MAX = 64
