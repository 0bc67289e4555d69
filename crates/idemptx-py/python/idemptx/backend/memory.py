"""The backend that keeps records in this process, for tests and for services of one process."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

from .._engines import engines_of, overrides
from .._idemptx import MemoryStore
from .._safety import Finding, SafetyReport, Severity
from .._storage_backend import StorageBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._idemptx import Rules, Step
    from .._store import Store

__all__ = ["InMemoryBackend"]


class InMemoryBackend(StorageBackend):
    """Keeps records in this process: gone when it ends, and unknown to other workers.

    What has expired is given back. `bytes_max` bounds what may be kept, 256 MiB unless set: beyond
    it new keys are refused with 503, and no claim is ever dropped.

    `only_process` says that no other process serves the application, and that a restart may forget
    everything. Without it the policy `on_unsafe_store: refuse`, and so the profile `payments`,
    does not take this backend, and others log a warning.
    """

    def __init__(self, bytes_max: int | None = None, *, only_process: bool = False) -> None:  # noqa: D107
        self._records = MemoryStore(bytes_max)
        self._limit = None if only_process else SEVERAL
        self._values = _Values()

    @property
    def transport(self) -> str:
        """The transport to the records: `memory`, or `adapter` for overriding subclasses."""
        return "adapter" if overrides(self) else "memory"

    async def check(self) -> SafetyReport:
        """Returns the backend's guarantees, and findings against them."""
        return await engines_of(self).here().store.check()

    async def aclose(self) -> None:
        """Ends what this event loop has open; records stay."""
        await engines_of(self).close()

    def get(self, key: str) -> dict[str, Any] | None:
        """A value set by `set`; the engine's records are not among them."""
        value: dict[str, Any] | None = self._values.get(key)
        return value

    def set(self, key: str, value: dict[str, Any], ttl: int) -> None:
        """Keeps a value for `ttl` seconds."""
        self._values.set(key, value, ttl)

    def acquire_lock(self, key: str, ttl: int) -> bool:
        """Takes a lock for at most `ttl` seconds."""
        return self._values.acquire(key, ttl)

    def release_lock(self, key: str) -> None:
        """Gives a lock back."""
        self._values.release(key)

    def _open_store(self) -> Store:
        return _LoopStore(self._records, self._limit)


class _LoopStore:
    """The records, as one event loop gets at them."""

    def __init__(self, records: MemoryStore, limit: str | None) -> None:
        self.memory = records
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._tending: asyncio.TimerHandle | None = None

    def perform(self, step: Step) -> None:
        self.memory.perform(step)
        if self._tending is None:
            self._tending = self._loop.call_later(TEND_EVERY, self._tend)

    def renew(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self.memory.perform(step)

    async def retry(self, step: Step) -> None:
        """Does nothing: there is no connection to lose."""

    async def watch(self, record: bytes, wake: Callable[[], None]) -> object:
        def wake_in_loop() -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(wake)

        return self.memory.watch(record, wake_in_loop)

    def expect(self, rules: Rules) -> None:
        """Does nothing: no step takes time."""

    async def check(self) -> SafetyReport:
        findings = [] if self._limit is None else [Finding(Severity.UNSAFE, self._limit)]
        return SafetyReport(GUARANTEE, findings)

    async def close(self) -> None:
        if self._tending is not None:
            self._tending.cancel()
            self._tending = None

    def _tend(self) -> None:
        self.memory.maintain()
        more = len(self.memory) > 0
        self._tending = self._loop.call_later(TEND_EVERY, self._tend) if more else None


class _Values:
    """Values and locks with an expiry, for direct calls of the backend's methods."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], tuple[float, Any]] = {}
        self._mutex = threading.Lock()
        self._sweep_at = SWEEP_FROM

    def get(self, key: str) -> Any:
        with self._mutex:
            return self._alive("value", key)

    def set(self, key: str, value: Any, ttl: float) -> None:
        with self._mutex:
            self._put("value", key, value, ttl)

    def acquire(self, key: str, ttl: float) -> bool:
        with self._mutex:
            if self._alive("lock", key) is not None:
                return False
            self._put("lock", key, True, ttl)
            return True

    def release(self, key: str) -> None:
        with self._mutex:
            self._entries.pop(("lock", key), None)

    def _alive(self, kind: str, key: str) -> Any:
        entry = self._entries.get((kind, key))
        return entry[1] if entry is not None and time.monotonic() < entry[0] else None

    def _put(self, kind: str, key: str, value: Any, ttl: float) -> None:
        now = time.monotonic()
        self._entries[kind, key] = (now + ttl, value)
        if len(self._entries) >= self._sweep_at:
            self._entries = {name: it for name, it in self._entries.items() if now < it[0]}
            self._sweep_at = max(SWEEP_FROM, 2 * len(self._entries))


TEND_EVERY = 5.0
SWEEP_FROM = 1024
GUARANTEE = (
    "memory: one execution per key within this process; every record ends with it, so a retry "
    "after a restart executes again"
)
SEVERAL = (
    "records are in this process alone: a retry that reaches another worker, or comes after a "
    "restart, is executed again; use a store that workers share, or say "
    "InMemoryBackend(only_process=True)"
)
