"""The abstract classes of backends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

__all__ = ["AsyncStorageBackend", "StorageBackend"]


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
