"""Where records are kept."""

from __future__ import annotations

from .memory import InMemoryBackend
from .redis import AsyncRedisBackend, RedisBackend

__all__ = ["AsyncRedisBackend", "InMemoryBackend", "RedisBackend", "from_url"]


def from_url(url: str, prefix: str = "idempotency:") -> InMemoryBackend | RedisBackend:
    """The backend that a URL names: `memory:`, `redis://…`, `rediss://…` or `unix:///path`.

    Nothing is opened yet: a server that cannot be reached now may be reached later.
    `ValueError` says what is wrong with the URL, and shows no password.
    """
    scheme = url.partition(":")[0]
    if url == "memory:":
        return InMemoryBackend()
    if scheme in LATER:
        message = f"this package has no store for {scheme}: URLs yet"
        raise ValueError(message)
    return RedisBackend(url, prefix)


LATER = frozenset(
    {"sqlite", "postgres", "postgresql", "redis+cluster", "redis+sentinel", "rediss+cluster"}
)
