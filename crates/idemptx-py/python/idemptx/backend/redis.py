"""The backends that keep records in Redis or Valkey."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .._address import Address, address_of_client, address_of_url, needs_compiled_store
from .._engines import engines_of, overrides
from .._idemptx import Layout, NativeStore
from .._native_store import LoopStore, PerProcessStore
from .._redis_asyncio import RedisAsyncioStore
from .._redis_client import STARVES, RedisClientStore, is_asynchronous
from .._storage_backend import AsyncStorageBackend, StorageBackend

if TYPE_CHECKING:
    from .._safety import SafetyReport
    from .._store import Store

__all__ = ["AsyncRedisBackend", "RedisBackend"]


class _RedisRecords:
    """Base of both backends: the location of the records and the transport to them."""

    redis: Any
    prefix: str

    def __init__(self, redis_instance: Any, prefix: str = "idempotency:") -> None:
        if not isinstance(prefix, str):
            message = f"prefix is text, not {type(prefix).__name__}"
            raise TypeError(message)
        self.prefix = prefix
        self._address: Address | None = None
        self._native_stores: PerProcessStore | None = None
        if isinstance(redis_instance, str):
            if needs_compiled_store(redis_instance):
                self._native_stores = PerProcessStore(
                    lambda: NativeStore.redis(redis_instance, prefix)
                )
            else:
                self._address = address_of_url(redis_instance)
            self.redis = None
        elif hasattr(redis_instance, "execute_command"):
            self._address = address_of_client(redis_instance)
            self.redis = redis_instance
        else:
            message = (
                "a Redis backend takes a client of redis-py or a URL, not "
                f"{type(redis_instance).__name__}"
            )
            raise TypeError(message)

    @property
    def transport(self) -> str:
        """The transport to the records.

        `in-loop`: over a separate connection in the event loop, with the client's settings.
        `client`: through the client object, whose settings do not say how to reach the server.
        `compiled`: through the compiled store, where the URL has settings that the others lack.
        `adapter`: through the methods of a subclass.
        """
        if overrides(self):
            return "adapter"
        if self._native_stores is not None:
            return "compiled"
        return "in-loop" if self._address is not None else "client"

    @property
    def _limit(self) -> str | None:
        starves = self.transport == "client" and is_asynchronous(self.redis)
        return STARVES if starves else None

    async def check(self) -> SafetyReport:
        """Returns the server's guarantees in its configuration, and findings against them.

        Raises `OSError` if it cannot be reached.
        """
        return await engines_of(self).here().store.check()  # type: ignore[arg-type]

    async def aclose(self) -> None:
        """Closes this event loop's connections; the client that was given stays open."""
        await engines_of(self).close()  # type: ignore[arg-type]

    def _open_store(self) -> Store:
        if self._native_stores is not None:
            return LoopStore(self._native_stores.here(), refuses_transactions=None)
        layout = Layout(self.prefix)
        if self._address is not None:
            return RedisAsyncioStore(self._address, layout)
        return RedisClientStore(self.redis, layout)

    # The original package's methods; the engine does not use them.

    def _key(self, key: str) -> str:
        return f"{self.prefix}{key}"

    def _lock_key(self, key: str) -> str:
        return f"{self._key(key)}:lock"

    @staticmethod
    def _encode(value: dict[str, Any]) -> str:
        return json.dumps(value)

    @staticmethod
    def _decode(value: bytes | str | None) -> Any:
        return json.loads(value) if value else None


class RedisBackend(_RedisRecords, StorageBackend):
    """Keeps records in Redis or Valkey.

        RedisBackend(redis.Redis(host="cache"))
        RedisBackend("rediss://user:secret@cache:6379/0")

    Takes a client of redis-py, synchronous or not, or a URL. A client's settings are read, and the
    records are reached over a separate connection in the event loop. A client without readable
    settings (cluster, sentinel, a double such as fakeredis, a subclass) is used directly, in a
    thread if it blocks. `transport` names the way in use.

    Precautions against a fail-over, certificates and changing passwords stand in the query of a
    URL, and only there; a client has none of them:

        RedisBackend("redis://cache?wait_replicas=all&failover_grace_ms=15000")

    Backends with different prefixes share nothing. Services in other languages share records under
    the same prefix, scope and route; theirs is `idem:` unless set.
    """

    def __init__(self, redis_instance: Any, prefix: str = "idempotency:") -> None:  # noqa: D107
        super().__init__(redis_instance, prefix)

    def get(self, key: str) -> dict[str, Any] | None:
        """A value set by `set`; the engine's records are not among them."""
        return self._decode(self._own_client.get(self._key(key)))  # type: ignore[no-any-return]

    def set(self, key: str, value: dict[str, Any], ttl: int) -> None:
        """Keeps a value for `ttl` seconds."""
        self._own_client.set(self._key(key), self._encode(value), ex=ttl)

    def acquire_lock(self, key: str, ttl: int) -> bool:
        """Takes a lock for at most `ttl` seconds."""
        return bool(self._own_client.set(self._lock_key(key), "1", nx=True, ex=ttl))

    def release_lock(self, key: str) -> None:
        """Gives a lock back."""
        self._own_client.delete(self._lock_key(key))

    @property
    def _own_client(self) -> Any:
        if self.redis is None or is_asynchronous(self.redis):
            raise TypeError(NO_CLIENT.format("synchronous"))
        return self.redis


class AsyncRedisBackend(_RedisRecords, AsyncStorageBackend):
    """A `RedisBackend` with asynchronous methods."""

    def __init__(self, redis_instance: Any, prefix: str = "idempotency:") -> None:  # noqa: D107
        super().__init__(redis_instance, prefix)

    async def get(self, key: str) -> dict[str, Any] | None:
        """A value set by `set`; the engine's records are not among them."""
        return self._decode(await self._own_client.get(self._key(key)))  # type: ignore[no-any-return]

    async def set(self, key: str, value: dict[str, Any], ttl: int) -> None:
        """Keeps a value for `ttl` seconds."""
        await self._own_client.set(self._key(key), self._encode(value), ex=ttl)

    async def acquire_lock(self, key: str, ttl: int) -> bool:
        """Takes a lock for at most `ttl` seconds."""
        return bool(await self._own_client.set(self._lock_key(key), "1", nx=True, ex=ttl))

    async def release_lock(self, key: str) -> None:
        """Gives a lock back."""
        await self._own_client.delete(self._lock_key(key))

    @property
    def _own_client(self) -> Any:
        if self.redis is None or not is_asynchronous(self.redis):
            raise TypeError(NO_CLIENT.format("asynchronous"))
        return self.redis


NO_CLIENT = "this method needs the backend to be made with a client of redis-py that is {}"
