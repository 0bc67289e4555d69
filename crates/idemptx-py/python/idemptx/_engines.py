"""The engines that run on a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._engine import Engines
from ._user_backend import UserBackendStore

if TYPE_CHECKING:
    from ._storage_backend import AsyncStorageBackend, StorageBackend
    from ._store import Store

__all__ = ["engines_of", "overrides"]


def engines_of(backend: StorageBackend | AsyncStorageBackend) -> Engines:
    """Returns the engines that run on a backend, shared by all its users."""
    engines: Engines | None = vars(backend).get(ENGINES)
    if engines is None:
        engines = Engines(lambda: _open_store(backend))
        setattr(backend, ENGINES, engines)
    return engines


def _open_store(backend: StorageBackend | AsyncStorageBackend) -> Store:
    opener = getattr(backend, "_open_store", None)
    if opener is not None and not overrides(backend):
        return opener()  # type: ignore[no-any-return]
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
