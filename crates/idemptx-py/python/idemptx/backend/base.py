"""What a backend is: the abstract classes for backends of your own, and how ours are found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from .._engine import Engines

if TYPE_CHECKING:
    from .._engine import Store

__all__ = ["AsyncStorageBackend", "StorageBackend", "engines_of"]


class StorageBackend(ABC):
    """A place for responses and locks that is asked synchronously, in a thread.

    Implement it to keep records somewhere else. It promises less than the backends that come
    along: a lock cannot be renewed or compared, so a handler that takes longer than its lock's
    `ttl` (the policy's retention) may run a second time, and one that vanishes blocks its key for
    as long.
    """

    @abstractmethod
    def get(self, key: str) -> dict[str, Any] | None:
        """The value kept under `key`; `None` if there is none or its time is over."""

    @abstractmethod
    def set(self, key: str, value: dict[str, Any], ttl: int) -> None:
        """Keeps a value, which JSON can express, for `ttl` seconds."""

    @abstractmethod
    def acquire_lock(self, key: str, ttl: int) -> bool:
        """Takes the lock `key` for at most `ttl` seconds: whether nobody else has it. Atomic."""

    @abstractmethod
    def release_lock(self, key: str) -> None:
        """Gives the lock back."""


class AsyncStorageBackend(ABC):
    """The same, asked with `await`; see `StorageBackend`."""

    @abstractmethod
    async def get(self, key: str) -> dict[str, Any] | None:
        """The value kept under `key`; `None` if there is none or its time is over."""

    @abstractmethod
    async def set(self, key: str, value: dict[str, Any], ttl: int) -> None:
        """Keeps a value, which JSON can express, for `ttl` seconds."""

    @abstractmethod
    async def acquire_lock(self, key: str, ttl: int) -> bool:
        """Takes the lock `key` for at most `ttl` seconds: whether nobody else has it. Atomic."""

    @abstractmethod
    async def release_lock(self, key: str) -> None:
        """Gives the lock back."""


def engines_of(backend: StorageBackend | AsyncStorageBackend) -> Engines:
    """The engines that run on a backend; the same for everybody who uses it."""
    if not isinstance(backend, StorageBackend | AsyncStorageBackend):
        message = (
            "storage_backend is a RedisBackend, an AsyncRedisBackend, an InMemoryBackend or a "
            f"StorageBackend of your own, not {type(backend).__name__}"
        )
        raise TypeError(message)
    engines: Engines | None = vars(backend).get(ENGINES)
    if engines is None:
        engines = Engines(lambda: _open_store(backend))
        setattr(backend, ENGINES, engines)
    return engines


def _open_store(backend: StorageBackend | AsyncStorageBackend) -> Store:
    opener = getattr(backend, "_open_store", None)
    if opener is not None and not overrides(backend):
        return opener()  # type: ignore[no-any-return]
    from .._adapter import AdapterStore  # noqa: PLC0415 - made of this module's classes

    return AdapterStore(backend)


def overrides(backend: object) -> bool:
    """Whether a backend has its own way of keeping things: it is none of ours, or a subclass that
    is asked differently.
    """
    for kind in type(backend).__mro__:
        if kind.__module__.partition(".")[0] == OURS:
            return not hasattr(kind, "_open_store")
        if not OPERATIONS.isdisjoint(vars(kind)):
            return True
    return True


OPERATIONS = frozenset({"get", "set", "acquire_lock", "release_lock"})
OURS = __name__.partition(".")[0]
ENGINES = "_idemptx_engines"
