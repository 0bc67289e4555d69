"""The backends that keep records."""

from __future__ import annotations

from .durable import (
    PostgresBackend,
    RedisClusterBackend,
    RedisSentinelBackend,
    SqliteBackend,
)
from .memory import InMemoryBackend
from .redis import AsyncRedisBackend, RedisBackend

__all__ = [
    "AsyncRedisBackend",
    "InMemoryBackend",
    "PostgresBackend",
    "RedisBackend",
    "RedisClusterBackend",
    "RedisSentinelBackend",
    "SqliteBackend",
    "from_url",
]


def from_url(
    url: str, prefix: str = "idempotency:"
) -> (
    InMemoryBackend
    | PostgresBackend
    | RedisBackend
    | RedisClusterBackend
    | RedisSentinelBackend
    | SqliteBackend
):
    """The backend that a URL names.

    | URL | backend |
    |---|---|
    | `memory:` | `InMemoryBackend` |
    | `postgres://[user[:password]@]host[:port]/database`, `postgresql://…` | `PostgresBackend` |
    | `redis://…`, `rediss://…`, `unix:///path` | `RedisBackend`, with this prefix |
    | `redis+cluster://host:port,…`, `rediss+cluster://…` | `RedisClusterBackend` |
    | `redis+sentinel://host:port,…/service`, `rediss+sentinel://…` | `RedisSentinelBackend` |
    | `sqlite:path`, `sqlite:///path` | `SqliteBackend` |

    Nothing is opened yet: a server that cannot be reached now may be reached later.
    `ValueError` and `TypeError` say what to write instead, and show no password.
    """
    if not isinstance(url, str):
        message = f"a store's URL is text, not {type(url).__name__}; {SCHEMES}"
        raise TypeError(message)
    scheme, colon, _ = url.partition(":")
    if url == "memory:":
        return InMemoryBackend()
    if not colon:
        raise ValueError(_advice(url, ""))
    if scheme in ("redis+cluster", "rediss+cluster"):
        return RedisClusterBackend(url, prefix)
    if scheme in ("redis+sentinel", "rediss+sentinel"):
        return RedisSentinelBackend(url, prefix)
    if scheme in ("postgres", "postgresql"):
        return PostgresBackend(url)
    if scheme == "sqlite":
        return SqliteBackend(_path_of(url))
    if scheme in REDIS:
        return RedisBackend(url, prefix)
    raise ValueError(_advice(url, scheme))


def _advice(url: str, scheme: str) -> str:
    if scheme == "memory" or url == "memory":
        return "the memory store has no parts: write memory:"
    if not scheme and url.endswith(FILES):
        return f"{url!r} is no URL: did you mean sqlite:{url}?"
    if url in ("redis", "sqlite", "postgres", "postgresql"):
        return f"{url!r} is a scheme without its place; {SCHEMES}"
    shown = f"{scheme}: is the scheme of no store" if scheme else "that is no URL of a store"
    return f"{shown}; {SCHEMES}"


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


REDIS = frozenset({"redis", "rediss", "redis+unix", "unix", "valkey", "valkeys", "valkey+unix"})
FILES = (".db", ".sqlite", ".sqlite3")
SCHEMES = (
    "a store is memory:, sqlite:PATH, redis://HOST:PORT/DATABASE, rediss:// for TLS, unix:///PATH, "
    "redis+cluster://HOST:PORT,HOST:PORT, redis+sentinel://HOST:PORT,HOST:PORT/SERVICE or "
    "postgres://HOST/DATABASE"
)
