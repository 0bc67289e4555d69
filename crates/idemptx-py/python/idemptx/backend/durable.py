"""The backends on compiled stores: SQLite, PostgreSQL, and Redis beyond one server."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from .._connections import SQLITE
from .._engines import engines_of
from .._idemptx import NativeStore
from .._native_store import LoopStore, PerProcessStore
from .._storage_backend import AsyncStorageBackend

if TYPE_CHECKING:
    from .._safety import SafetyReport
    from .._store import Store

__all__ = ["PostgresBackend", "RedisClusterBackend", "RedisSentinelBackend", "SqliteBackend"]


class _DurableRecords(AsyncStorageBackend):
    """Base of these backends: one Rust store for each process."""

    _refuses_transactions: str | None = None

    def __init__(self) -> None:
        self._native_stores = PerProcessStore(self._make_native_store)

    async def check(self) -> SafetyReport:
        """Returns the store's guarantees in its configuration, and findings against them.

        Raises `OSError` if it cannot be opened or reached.
        """
        return await engines_of(self).here().store.check()

    async def aclose(self) -> None:
        """Ends what this event loop has open."""
        await engines_of(self).close()

    @abstractmethod
    def _make_native_store(self) -> NativeStore: ...

    @property
    def _native_store(self) -> NativeStore:
        return self._native_stores.here()

    def _open_store(self) -> Store:
        return LoopStore(self._native_store, refuses_transactions=self._refuses_transactions)

    # The engine uses its own records, and there are no values beside them.

    async def get(self, key: str) -> dict[str, Any] | None:
        """Raises `TypeError`: these backends keep the engine's records and nothing else."""
        raise TypeError(NO_VALUES.format(key))

    async def set(self, key: str, value: dict[str, Any], ttl: int) -> None:
        """Raises `TypeError`, as `get` does."""
        del value, ttl
        raise TypeError(NO_VALUES.format(key))

    async def acquire_lock(self, key: str, ttl: int) -> bool:
        """Raises `TypeError`, as `get` does."""
        del ttl
        raise TypeError(NO_VALUES.format(key))

    async def release_lock(self, key: str) -> None:
        """Raises `TypeError`, as `get` does."""
        raise TypeError(NO_VALUES.format(key))


class SqliteBackend(_DurableRecords):
    """Keeps records in a file, for all processes of one host.

        SqliteBackend("/var/lib/shop/idempotency.db")

    Acknowledged records are on the disk. The file is opened when first used, and created if it is
    missing; its folder is not. `timeout` is the number of seconds that a step waits for the disk.

    Neither open the file with Python's `sqlite3` in a process that uses it here, nor fork such a
    process: SQLite's locks survive neither. See the guide.
    """

    _refuses_transactions = SQLITE

    def __init__(self, path: str | os.PathLike[str], *, timeout: float | None = None) -> None:  # noqa: D107
        self.path = os.fspath(path)
        self._timeout = timeout
        if not isinstance(self.path, str):
            message = f"path is text or a Path, not {type(self.path).__name__}"
            raise TypeError(message)
        if self.path in ("", ":memory:"):
            message = "SqliteBackend keeps a file: name one, or use InMemoryBackend()"
            raise ValueError(message)
        super().__init__()

    @property
    def transport(self) -> str:
        """The transport to the records: `sqlite`."""
        return "sqlite"

    def _make_native_store(self) -> NativeStore:
        return NativeStore.sqlite(self.path, self._timeout)


class PostgresBackend(_DurableRecords):
    """Keeps records in PostgreSQL 13 or newer.

        PostgresBackend("postgres://app:secret@db/shop", schema="idemptx")

    The tables are created when first needed, unless `migrate` is false: then run the statements of
    `schema_sql()` yourself. Stores with another `schema` or `table` share nothing.

    - `pooled`: there is a pooler in transaction mode in between, such as pgbouncer's.
    - `sessions`: how many of the server's sessions a process may use, 4 unless set.
    - `synchronous_commit`: the level for these sessions, independent of the server's default.
    - `timeout`: for how many seconds a step waits for its answer.
    - `ca_certificates`: who may vouch for the server, in PEM, instead of the public authorities.

    Raises `ValueError` with what to change; nothing is connected to yet.
    """

    def __init__(  # noqa: D107
        self,
        url: str,
        *,
        schema: str | None = None,
        table: str | None = None,
        migrate: bool = True,
        pooled: bool = False,
        sessions: int | None = None,
        synchronous_commit: Literal["local", "remote_write", "on", "remote_apply"] | None = None,
        timeout: float | None = None,
        ca_certificates: bytes | str | None = None,
    ) -> None:
        if not isinstance(url, str):
            message = f"PostgresBackend takes a URL, not {type(url).__name__}"
            raise TypeError(message)
        pem = ca_certificates.encode() if isinstance(ca_certificates, str) else ca_certificates
        self._url = url
        self._settings: dict[str, Any] = {
            "schema": schema,
            "table": table,
            "migrate": migrate,
            "pooled": pooled,
            "sessions": sessions,
            "synchronous_commit": synchronous_commit,
            "timeout": timeout,
            "ca_certificates": pem,
        }
        super().__init__()

    @property
    def transport(self) -> str:
        """The transport to the records: `postgres`."""
        return "postgres"

    def schema_sql(self) -> str:
        """The SQL that makes the tables, for those who run it themselves."""
        return self._native_store.schema_sql()

    def _make_native_store(self) -> NativeStore:
        return NativeStore.postgres(self._url, **self._settings)


class _CompiledRedisBackend(_DurableRecords):
    """Base of the backends for Redis beyond one server."""

    _scheme: str

    def __init__(
        self, url: str, prefix: str = "idempotency:", *, timeout: float | None = None
    ) -> None:
        if not isinstance(url, str):
            message = f"{type(self).__name__} takes a URL, not {type(url).__name__}"
            raise TypeError(message)
        if not url.partition("://")[0].endswith(self._scheme):
            message = f"{type(self).__name__} takes a URL redis{self._scheme}://HOST:PORT,HOST:PORT"
            raise ValueError(message)
        self._url, self._prefix, self._timeout = url, prefix, timeout
        super().__init__()

    def _make_native_store(self) -> NativeStore:
        return NativeStore.redis(self._url, self._prefix, self._timeout)


class RedisClusterBackend(_CompiledRedisBackend):
    """Keeps records in a Redis or Valkey cluster.

        RedisClusterBackend("redis+cluster://app:secret@node-1:6379,node-2:6379")

    The URL names a few of the nodes, `rediss+cluster://` encrypts connections, and a private
    authority goes into its query: `?ca_file=/etc/ssl/internal.pem`. `timeout` is the number of
    seconds that a step waits for its answer.

    Raises `ValueError` with what to change; nothing is connected to yet.
    """

    _scheme = "+cluster"

    @property
    def transport(self) -> str:
        """The transport to the records: `redis-cluster`."""
        return "redis-cluster"


class RedisSentinelBackend(_CompiledRedisBackend):
    """Keeps records in the Redis or Valkey server that sentinels say is the primary.

        RedisSentinelBackend("redis+sentinel://app:secret@guard-1:26379,guard-2:26379/records")

    The URL names the sentinels and the service; its user and password are those of the servers,
    and those of the sentinels go into its query: `?sentinel_password=…`. `timeout` is the number
    of seconds that a step waits for its answer.

    Raises `ValueError` with what to change; nothing is connected to yet.
    """

    _scheme = "+sentinel"

    @property
    def transport(self) -> str:
        """The transport to the records: `redis-sentinel`."""
        return "redis-sentinel"


NO_VALUES = "this backend keeps the engine's records and nothing else, so not {!r}"
