"""What a backend is: the abstract classes for backends of your own, and how ours are found."""

from __future__ import annotations

import weakref
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
    engines = _ENGINES.get(backend)
    if engines is None:
        if not isinstance(backend, StorageBackend | AsyncStorageBackend):
            message = (
                "storage_backend is a RedisBackend, an AsyncRedisBackend, an InMemoryBackend or "
                f"a StorageBackend of your own, not {type(backend).__name__}"
            )
            raise TypeError(message)
        engines = _ENGINES[backend] = Engines(_opener(backend))
    return engines


def _opener(backend: StorageBackend | AsyncStorageBackend) -> Any:
    # The engines are forgotten with their backend, so they must not keep it alive themselves.
    backend_ref = weakref.ref(backend)

    def open_store() -> Store:
        alive = backend_ref()
        assert alive is not None  # noqa: S101 - whoever asks has it
        opener = getattr(alive, "_open_store", None)
        if opener is not None and not overrides(alive):
            return opener()  # type: ignore[no-any-return]
        from .._adapter import AdapterStore  # noqa: PLC0415 - made of this module's classes

        return AdapterStore(alive)

    return open_store


def overrides(backend: object) -> bool:
    """Whether a subclass of one of our backends has its own way of keeping things."""
    for kind in type(backend).__mro__:
        if "_open_store" in vars(kind):
            return False
        if not OPERATIONS.isdisjoint(vars(kind)):
            return True
    return True


OPERATIONS = frozenset({"get", "set", "acquire_lock", "release_lock"})
_ENGINES: weakref.WeakKeyDictionary[StorageBackend | AsyncStorageBackend, Engines] = (
    weakref.WeakKeyDictionary()
)
