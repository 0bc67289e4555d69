"""The abstract classes of backends."""

from __future__ import annotations

from .._storage_backend import AsyncStorageBackend, StorageBackend

__all__ = ["AsyncStorageBackend", "StorageBackend"]
