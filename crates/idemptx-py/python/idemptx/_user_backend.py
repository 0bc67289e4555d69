"""Adapts user-written backends to a store: locks and values instead of claims and records."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ._idemptx import (
    CLAIM,
    INTERNAL,
    LOOKUP,
    PENDING,
    RELEASE,
    SETTLE,
    UNAVAILABLE,
)
from ._safety import Finding, SafetyReport, Severity
from ._storage_backend import AsyncStorageBackend, StorageBackend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ._idemptx import Rules, Step

__all__ = ["UserBackendStore"]

logger = logging.getLogger("idemptx")


class UserBackendStore:
    """A store whose guarantees are limited to get, set and locks without owners.

    A claim is a lock for the whole retention: it is never renewed, and an orphan cannot be
    distinguished from a running handler.
    """

    def __init__(self, backend: StorageBackend | AsyncStorageBackend) -> None:
        self._backend = backend
        self._threads: ThreadPoolExecutor | None = None
        if isinstance(backend, StorageBackend):
            self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="idemptx-backend")
        self._timeout = TIMEOUT
        self._locks: dict[bytes, float] = {}

    def perform(self, step: Step) -> Awaitable[None]:
        """Performs a step through the backend's own methods."""
        return self._perform(step)

    async def _perform(self, step: Step) -> None:
        try:
            await asyncio.wait_for(self._take(step), self._timeout)
        except (asyncio.TimeoutError, TimeoutError):
            step.fail(UNAVAILABLE, f"the backend took more than {self._timeout} s")
        except Exception as error:  # noqa: BLE001 - a backend may raise whatever it likes
            step.fail(UNAVAILABLE, f"{type(error).__name__}: {error}")
        if step.verdict == PENDING:
            step.fail(INTERNAL, "the backend did nothing")

    async def _take(self, step: Step) -> None:
        backend = self._backend
        name = step.id.hex()
        kind = step.kind
        if kind in (CLAIM, LOOKUP):
            if await self._found(step, name):
                return
            if kind == LOOKUP:
                # A lock cannot be inspected, so a waiter tries to take it at intervals.
                await asyncio.sleep(TRY_EVERY)
                step.succeed()
                return
            ttl = seconds(step.retain)
            if not await self._call(backend.acquire_lock, name, ttl):
                step.hold(step.retain)
                return
            # Another request may have settled and unlocked since the lookup.
            if await self._found(step, name):
                await self._call(backend.release_lock, name)
                return
            step.grant()
        elif kind == SETTLE:
            value = as_value(step.record())
            await self._call(backend.set, name, value, seconds(step.retain))
            step.succeed()
            await self._unlock(name)
        elif kind == RELEASE:
            await self._call(backend.release_lock, name)
            step.succeed()
        else:
            step.fail(INTERNAL, "a backend of this kind cannot be watched")

    async def _found(self, step: Step, name: str) -> bool:
        value = await self._call(self._backend.get, name)
        if not value:
            return False
        record = record_of(value)
        if step.replaces(record):
            return False
        step.find(record)
        return True

    async def _unlock(self, name: str) -> None:
        try:
            await self._call(self._backend.release_lock, name)
        except Exception as error:  # noqa: BLE001 - the result is kept, so the lock does no harm
            logger.warning("a lock was not given back: %s", error)

    async def _call(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        if self._threads is not None:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, lambda: operation(*arguments))
        return await operation(*arguments)

    def renew(self, steps: Sequence[Step]) -> None:
        """Does nothing: the lock lasts for the whole retention."""
        for step in steps:
            step.succeed()

    async def retry(self, step: Step) -> None:
        """Does nothing: a lock taken unconfirmed looks like another request's."""

    async def watch(self, record: bytes, wake: Callable[[], None]) -> object:
        """Returns `None`: a lock cannot be watched."""
        del record, wake
        return None

    def expect(self, rules: Rules) -> None:
        """Applies the time limit of a step."""
        self._timeout = min(self._timeout, rules.claim_timeout)

    async def check(self) -> SafetyReport:
        """Reports the limits of every backend of this kind."""
        name = type(self._backend).__name__
        text = f"{name} has locks without owners: a handler that outlasts one may run twice"
        return SafetyReport(
            "what its get, set and locks are worth", [Finding(Severity.UNSAFE, text)]
        )

    async def close(self) -> None:
        """Stops the threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)


def as_value(record: bytes) -> dict[str, Any]:
    """A record as a value that JSON can express."""
    return {"record": base64.b64encode(record).decode("ascii")}


def record_of(value: dict[str, Any] | str | bytes) -> bytes:
    """The record in a value; empty, and so no record, if there is none."""
    if isinstance(value, str | bytes):
        value = json.loads(value)
    text = value.get("record") if isinstance(value, dict) else None
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        return b""


def seconds(duration: float) -> int:
    """Whole seconds, at least one, as the original's interface counts."""
    return max(1, math.ceil(duration))


TIMEOUT = 5.0
THREADS_MAX = 32
TRY_EVERY = 0.1
