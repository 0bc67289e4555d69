"""The abstract classes of backends, and the engines that run on a backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from .._engine import Engines

if TYPE_CHECKING:
    from .._engine import Store

__all__ = ["AsyncStorageBackend", "StorageBackend", "engines_of"]


class StorageBackend(ABC):
    """A synchronous backend for responses and locks, called in a thread.

    Implement it to keep records elsewhere. Its guarantees are weaker than those of the included
    backends: a lock cannot be renewed or compared, so a handler that takes longer than its lock's
    `ttl` (the policy's retention) may run a second time, and a process that dies blocks its key
    for as long.
    """

    @abstractmethod
    def get(self, key: str) -> dict[str, Any] | None:
        """The value kept under `key`; `None` if there is none or its time is over."""

    @abstractmethod
    def set(self, key: str, value: dict[str, Any], ttl: int) -> None:
        """Keeps a value, which JSON can express, for `ttl` seconds."""

    @abstractmethod
    def acquire_lock(self, key: str, ttl: int) -> bool:
        """Takes the lock `key` for at most `ttl` seconds, atomically; false if it is held."""

    @abstractmethod
    def release_lock(self, key: str) -> None:
        """Gives the lock back."""


class AsyncStorageBackend(ABC):
    """An asynchronous backend; see `StorageBackend`."""

    @abstractmethod
    async def get(self, key: str) -> dict[str, Any] | None:
        """The value kept under `key`; `None` if there is none or its time is over."""

    @abstractmethod
    async def set(self, key: str, value: dict[str, Any], ttl: int) -> None:
        """Keeps a value, which JSON can express, for `ttl` seconds."""

    @abstractmethod
    async def acquire_lock(self, key: str, ttl: int) -> bool:
        """Takes the lock `key` for at most `ttl` seconds, atomically; false if it is held."""

    @abstractmethod
    async def release_lock(self, key: str) -> None:
        """Gives the lock back."""


def engines_of(backend: StorageBackend | AsyncStorageBackend) -> Engines:
    """Returns the engines that run on a backend, shared by all its users."""
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
    from .._user_backend import UserBackendStore  # noqa: PLC0415 - made of this module's classes

    return UserBackendStore(backend)


def overrides(backend: object) -> bool:
    """True if a backend keeps records by its own methods: a user's class, or a subclass of ours
    that overrides an operation.
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
