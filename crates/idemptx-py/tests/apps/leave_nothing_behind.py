"""Ends event loops in every state of a request, and looks for what is left open.

Under `-X dev -W error` a socket, task or coroutine that is never ended is an error on stderr.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from pathlib import Path
from typing import Any

import httpx
import redis
import redis.asyncio
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from idemptx import IdempotencyMiddleware, idempotent
from idemptx.backend import AsyncRedisBackend, InMemoryBackend, RedisBackend, from_url

PORT = int(os.environ["TEST_REDIS_PORT"])
ROUNDS = 3


def make_app(backend: Any) -> tuple[FastAPI, asyncio.Event]:
    app, began = FastAPI(), asyncio.Event()

    @app.post("/fast")
    @idempotent(backend)
    async def fast() -> dict[str, bool]:
        return {"ok": True}

    @app.post("/slow")
    @idempotent(backend, wait_timeout=60)
    async def slow() -> dict[str, bool]:
        began.set()
        await asyncio.sleep(3600)
        return {"ok": True}

    return app, began


async def play(backend: Any, key: str) -> None:
    app, began = make_app(backend)
    layered = IdempotencyMiddleware(PlainTextResponse("fine"), storage_backend=backend)
    headers = {"Idempotency-Key": key}
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client,
        httpx.AsyncClient(transport=httpx.ASGITransport(layered), base_url="http://l") as other,
    ):
        assert (await client.post("/fast", headers=headers)).status_code == 200
        assert (await client.post("/fast", headers=headers)).status_code == 200
        assert (
            await other.post("/fast", headers={"Idempotency-Key": key + "l"})
        ).status_code == 200
        holder = asyncio.create_task(client.post("/slow", headers=headers))
        await began.wait()
        waiter = asyncio.create_task(client.post("/slow", headers=headers))
        await asyncio.sleep(0.05)
        holder.cancel()
        waiter.cancel()
        await asyncio.gather(holder, waiter, return_exceptions=True)
    # The handler still runs when the loop ends; nobody closes the backend.


def run(backend: Any, key: str) -> None:
    if os.environ["TEST_LOOP"] == "uvloop":
        import uvloop  # noqa: PLC0415

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(play(backend, key))
    else:
        asyncio.run(play(backend, key))


def open_files() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def main() -> None:
    # Not what it thinks of this Redis, nor how long a step takes in development mode.
    for name in ("idemptx", "asyncio"):
        logging.getLogger(name).setLevel(logging.ERROR)
    client = redis.Redis(port=PORT)
    backends = {
        "memory": InMemoryBackend(),
        "client": RedisBackend(client),
        "async client": AsyncRedisBackend(redis.asyncio.Redis(port=PORT)),
        "url": from_url(f"redis://127.0.0.1:{PORT}"),
        "sqlite": from_url(f"sqlite:{os.environ['TEST_FOLDER']}/records.db"),
        "postgres": from_url(os.environ["TEST_POSTGRES"]),
    }
    for name, backend in backends.items():
        run(backend, f"{name} first".replace(" ", "-"))
        before = open_files()
        for number in range(ROUNDS):
            run(backend, f"{name} {number}".replace(" ", "-"))
        assert open_files() <= before, f"{name}: {open_files() - before} files are left open"
    client.close()
    print("fine")  # noqa: T201


if __name__ == "__main__":
    main()
