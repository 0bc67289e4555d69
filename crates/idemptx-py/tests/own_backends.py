"""Backends and clients as applications may have written them, and one route on each."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel
from idemptx.backend.base import AsyncStorageBackend, StorageBackend
from protected import protected
from protocol import KEY

if TYPE_CHECKING:
    from fastapi import FastAPI


class OwnBackend(StorageBackend):
    """A backend that an application may have written for the original: values are dicts."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.locks: set[str] = set()
        self._mutex = threading.Lock()

    def get(self, key: str) -> dict[str, Any] | None:
        return self.values.get(key)

    def set(self, key: str, value: dict[str, Any], ttl: int) -> None:
        assert isinstance(value, dict)
        assert isinstance(ttl, int)
        assert json.loads(json.dumps(value)) == value
        self.values[key] = value

    def acquire_lock(self, key: str, ttl: int) -> bool:
        assert isinstance(ttl, int)
        with self._mutex:
            taken = key in self.locks
            self.locks.add(key)
            return not taken

    def release_lock(self, key: str) -> None:
        self.locks.discard(key)


class OwnAsyncBackend(AsyncStorageBackend):
    def __init__(self) -> None:
        self.kept = OwnBackend()

    async def get(self, key: str) -> dict[str, Any] | None:
        await asyncio.sleep(0)
        return self.kept.get(key)

    async def set(self, key: str, value: dict[str, Any], ttl: int) -> None:
        await asyncio.sleep(0)
        self.kept.set(key, value, ttl)

    async def acquire_lock(self, key: str, ttl: int) -> bool:
        await asyncio.sleep(0)
        return self.kept.acquire_lock(key, ttl)

    async def release_lock(self, key: str) -> None:
        await asyncio.sleep(0)
        self.kept.release_lock(key)


class SpecialRedis(redis.Redis):
    """May do anything in `execute_command`."""


class SpecialAsyncRedis(redis.asyncio.Redis):
    """May do anything in `execute_command`, asynchronously."""


async def close(backend: Any) -> None:
    if hasattr(backend, "aclose"):
        await backend.aclose()
    client = getattr(backend, "redis", None)
    if hasattr(client, "aclose"):
        await client.aclose()
        # Some doubles leave their pool open.
        if pool := getattr(client, "connection_pool", None):
            await pool.disconnect()
    elif client is not None:
        client.close()


def one_route(backend: Any, calls: Any, **options: Any) -> FastAPI:
    @protected(backend, **options)
    async def app() -> Any:
        return {"n": next(calls)}

    return app


async def post(connect: Any, app: Any) -> Any:
    async with connect(app) as client:
        return await client.post("/orders", headers=KEY)


async def two_tries(connect: Any, backend: Any) -> list[int]:
    calls = iter(range(9))
    app = one_route(backend, calls)
    statuses = [(await post(connect, app)).status_code for _ in range(2)]
    if statuses == [200, 200]:
        assert next(calls) == 1
    await close(backend)
    return statuses
