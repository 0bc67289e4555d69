"""The backend of a decorator or a middleware, given as itself or as a URL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._engines import overrides
from ._storage_backend import AsyncStorageBackend, StorageBackend
from .backend import from_url

if TYPE_CHECKING:
    from ._idemptx import Rules

__all__ = ["backend_of", "check_safety"]


def backend_of(
    storage_backend: StorageBackend | AsyncStorageBackend | str,
) -> StorageBackend | AsyncStorageBackend:
    """Returns the backend, which all users of one URL share."""
    if isinstance(storage_backend, str):
        known = _BY_URL.get(storage_backend)
        if known is None:
            known = _BY_URL[storage_backend] = from_url(storage_backend)
        return known
    if not isinstance(storage_backend, StorageBackend | AsyncStorageBackend):
        message = (
            "storage_backend is a RedisBackend, a SqliteBackend, a PostgresBackend, an "
            "InMemoryBackend, a URL for one of them, or a StorageBackend of your own, not "
            f"{type(storage_backend).__name__}"
        )
        raise TypeError(message)
    return storage_backend


def check_safety(backend: StorageBackend | AsyncStorageBackend, rules: Rules) -> None:
    """Raises `ValueError` if the policy refuses a store whose records cannot be relied on.

    What a server's configuration makes of it is found at the first use.
    """
    limit: str | None = LOCKS if overrides(backend) else getattr(backend, "_limit", None)
    if limit is not None and rules.refuses_unsafe_stores:
        message = (
            f"{limit}; the policy `on_unsafe_store: refuse` of the profile {rules.profile} "
            'does not allow that: use another backend, or policy={"on_unsafe_store": "warn"}'
        )
        raise ValueError(message)


LOCKS = (
    "a backend with locks of its own cannot renew them: a handler that outlasts one may run twice"
)
_BY_URL: dict[str, StorageBackend | AsyncStorageBackend] = {}
