"""The backends that keep records."""

from __future__ import annotations

from .durable import PostgresBackend, SqliteBackend
from .memory import InMemoryBackend
from .redis import AsyncRedisBackend, RedisBackend

__all__ = [
    "AsyncRedisBackend",
    "InMemoryBackend",
    "PostgresBackend",
    "RedisBackend",
    "SqliteBackend",
    "from_url",
]


def from_url(
    url: str, prefix: str = "idempotency:"
) -> InMemoryBackend | PostgresBackend | RedisBackend | SqliteBackend:
    """The backend that a URL names.

    | URL | backend |
    |---|---|
    | `memory:` | `InMemoryBackend` |
    | `postgres://[user[:password]@]host[:port]/database`, `postgresql://…` | `PostgresBackend` |
    | `redis://…`, `rediss://…`, `unix:///path` | `RedisBackend`, with this prefix |
    | `sqlite:path`, `sqlite:///path` | `SqliteBackend` |

    Nothing is opened yet: a server that cannot be reached now may be reached later.
    `ValueError` says what is wrong with the URL, and shows no password.
    """
    scheme = url.partition(":")[0]
    if url == "memory:":
        return InMemoryBackend()
    if scheme in LATER:
        message = f"this package has no store for {scheme}: URLs yet"
        raise ValueError(message)
    if scheme in ("postgres", "postgresql"):
        return PostgresBackend(url)
    if scheme == "sqlite":
        return SqliteBackend(_path_of(url))
    return RedisBackend(url, prefix)


def _path_of(url: str) -> str:
    path = url.removeprefix("sqlite:")
    if path.startswith("//"):
        path = path[2:]
        if not path.startswith("/"):
            message = "write sqlite:PATH, or sqlite:///PATH for an absolute path"
            raise ValueError(message)
    if not path:
        message = "the URL names no file: write sqlite:PATH"
        raise ValueError(message)
    if path == ":memory:":
        message = "SQLite in memory keeps nothing: write memory: for the memory store"
        raise ValueError(message)
    if "?" in path or "#" in path:
        message = "a URL sqlite:PATH takes no parameters: SqliteBackend has them"
        raise ValueError(message)
    return path


LATER = frozenset({"redis+cluster", "redis+sentinel", "rediss+cluster"})
