"""The same handler under the middleware; `options` in `TEST_SETTINGS` are its parameters."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator

import redis.asyncio
from fastapi import FastAPI
from idemptx import IdempotencyMiddleware, current_execution
from idemptx.backend import AsyncRedisBackend

PORT = int(os.environ["TEST_REDIS_PORT"])
SETTINGS = json.loads(os.environ["TEST_SETTINGS"])
HOLD_SECONDS_MAX = 20

notes = redis.asyncio.Redis(port=PORT)
backend = AsyncRedisBackend(redis.asyncio.Redis(port=PORT))


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await notes.rpush("test:started", str(os.getpid()))
    yield
    await notes.aclose()


app = FastAPI(lifespan=lifespan)
app.add_middleware(IdempotencyMiddleware, storage_backend=backend, **SETTINGS.get("options", {}))


@app.post("/orders", status_code=201)
async def create_order(ms: int = 0, hold: bool = False) -> dict[str, int]:
    execution = current_execution()
    key = execution.key if execution else "none"
    number = await notes.rpush("test:effects", key)
    await notes.rpush(f"test:begun:{key}", "")
    if hold:
        await notes.blpop([f"test:finish:{key}"], timeout=HOLD_SECONDS_MAX)
    await asyncio.sleep(ms / 1000)
    await notes.rpush(f"test:ended:{key}", "")
    return {"n": number, "pid": os.getpid()}
