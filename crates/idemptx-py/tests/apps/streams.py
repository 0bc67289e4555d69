"""A stream of two events, the second of which is sent after a request to `/go`."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import redis.asyncio
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from idemptx import idempotent
from idemptx.backend import InMemoryBackend

GO_SECONDS_MAX = 20


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    notes = redis.asyncio.Redis(port=int(os.environ["TEST_REDIS_PORT"]))
    await notes.rpush("test:started", str(os.getpid()))
    await notes.aclose()
    app.state.go = asyncio.Event()
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/events")
@idempotent(InMemoryBackend())
async def events() -> StreamingResponse:
    async def made() -> AsyncIterator[str]:
        yield "data: 1\n\n"
        await asyncio.wait_for(app.state.go.wait(), GO_SECONDS_MAX)
        yield "data: 2\n\n"

    return StreamingResponse(made(), media_type="text/event-stream")


@app.post("/go")
async def go() -> None:
    app.state.go.set()
