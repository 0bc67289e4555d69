"""An application that runs with the original package as well: `request` is a parameter.

`TEST_SETTINGS`: `backend` (async, sync, memory, or a store's URL), `options`, the decorator's
parameters, and `records_port` if the backend's Redis is another than that of the notes.
Handlers tell Redis what they do, so that tests can await it and count across processes.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator

import redis
import redis.asyncio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from idemptx import idempotent
from idemptx.backend import AsyncRedisBackend, InMemoryBackend, RedisBackend

PORT = int(os.environ["TEST_REDIS_PORT"])
SETTINGS = json.loads(os.environ["TEST_SETTINGS"])
RECORDS_PORT = SETTINGS.get("records_port", PORT)
HOLD_SECONDS_MAX = 20


def _by_url(url):
    from idemptx.backend import from_url  # noqa: PLC0415 - the original has no such thing

    return from_url(url)


notes = redis.asyncio.Redis(port=PORT)
backend = {
    "async": lambda: AsyncRedisBackend(redis.asyncio.Redis(port=RECORDS_PORT)),
    "sync": lambda: RedisBackend(redis.Redis(port=RECORDS_PORT)),
    "memory": InMemoryBackend,
}.get(SETTINGS.get("backend", "async"), lambda: _by_url(SETTINGS["backend"]))()


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await notes.rpush("test:started", str(os.getpid()))
    yield
    await notes.aclose()


app = FastAPI(lifespan=lifespan)


@app.post("/orders")
@idempotent(backend, **SETTINGS.get("options", {}))
async def create_order(
    request: Request, ms: int = 0, hold: bool = False, status: int = 201
) -> JSONResponse:
    key = request.headers["idempotency-key"].strip('"')
    number = await notes.rpush("test:effects", key)
    await notes.rpush(f"test:begun:{key}", "")
    if hold:
        await notes.blpop([f"test:finish:{key}"], timeout=HOLD_SECONDS_MAX)
    await asyncio.sleep(ms / 1000)
    await notes.rpush(f"test:ended:{key}", "")
    return JSONResponse({"n": number, "pid": os.getpid()}, status)


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "fine"}
