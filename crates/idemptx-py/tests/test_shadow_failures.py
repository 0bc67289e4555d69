"""Shadow mode: a handler's exception is what it would be without the package."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from idemptx import IdempotencyMiddleware, idempotent
from idemptx.backend import InMemoryBackend

pytestmark = pytest.mark.anyio

KEY = {"Idempotency-Key": "k"}
SHADOW = {"mode": "shadow"}


def _behind_middleware(app: FastAPI) -> Any:
    app.add_middleware(IdempotencyMiddleware, storage_backend=InMemoryBackend(), policy=SHADOW)
    return lambda handler: handler


def _decorated(_: FastAPI) -> Any:
    return idempotent(InMemoryBackend(), policy=SHADOW)


@pytest.mark.parametrize("protect", [_behind_middleware, _decorated])
async def test_an_exception_reaches_the_server_and_frees_the_key(protect: Any) -> None:
    app, calls = FastAPI(), 0
    wrap = protect(app)

    @app.post("/orders")
    @wrap
    async def create_order(request: Request) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise LookupError(request.url.path)
        return JSONResponse({"n": calls}, 201)

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        with pytest.raises(LookupError, match="/orders"):
            await client.post("/orders", headers=KEY)
        answer = await client.post("/orders", headers=KEY)
    assert (answer.status_code, answer.json()) == (201, {"n": 2})
    assert answer.headers.get("idempotency-status") not in {"would-replay", "would-refuse"}


@pytest.mark.parametrize("protect", [_behind_middleware, _decorated])
async def test_an_exception_handler_answers_as_it_would(protect: Any) -> None:
    app = FastAPI()
    wrap = protect(app)

    @app.exception_handler(LookupError)
    async def lost(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"lost": str(error)}, 418)

    @app.post("/orders")
    @wrap
    async def create_order(request: Request) -> Any:
        raise LookupError(request.url.path)

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post("/orders", headers=KEY)
    assert (answer.status_code, answer.json()) == (418, {"lost": "/orders"})
