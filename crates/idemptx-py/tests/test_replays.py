"""Headers that a replay leaves out, and those by which refusals advise a client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from idemptx import IdempotencyMiddleware, idempotent
from idemptx.backend import InMemoryBackend
from protocol import KEY

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["decorator", "middleware"])
def protect(request: Any) -> Any:
    """Puts a handler at `/orders` under one of the two layers."""

    def protected(handler: Any, **options: Any) -> Any:
        app = FastAPI()
        if request.param == "decorator":
            app.post("/orders")(idempotent(InMemoryBackend(), required=False, **options)(handler))
            return app
        app.post("/orders")(handler)
        return IdempotencyMiddleware(app, InMemoryBackend(), **options)

    return protected


OF_ONE_EXCHANGE = [
    "X-Correlation-Id",
    "X-Request-Id",
    "X-Amzn-Trace-Id",
    "X-B3-TraceId",
    "X-Runtime",
    "CF-Ray",
    "Authorization",
    "Cookie",
    "Set-Cookie2",
]


async def test_what_belongs_to_one_exchange_or_client_is_not_replayed(
    connect: Any, protect: Any
) -> None:
    async def create_order(request: Request) -> Response:
        echoed = request.headers.get("x-correlation-id", "none")
        lines = {**dict.fromkeys(OF_ONE_EXCHANGE, "first"), "X-Correlation-Id": echoed}
        return JSONResponse({}, headers={**lines, "X-Kept": "yes"})

    async with connect(protect(create_order)) as client:
        first, again = [
            await client.post("/orders", headers={**KEY, "X-Correlation-Id": correlation})
            for correlation in ("one", "two")
        ]
    assert first.headers["x-correlation-id"] == "one"
    assert [name for name in OF_ONE_EXCHANGE if name in again.headers] == []
    assert again.headers["x-kept"] == "yes"


@pytest.mark.parametrize("name", ["X-Request-Id", "date", "Set-Cookie", "authorization"])
def test_a_header_that_is_never_replayed_cannot_be_allowed(protect: Any, name: str) -> None:
    async def create_order() -> None: ...

    with pytest.raises(ValueError, match=name.lower()):
        protect(create_order, policy={"replay_headers": {"allow": ["content-type", name]}})


async def test_allowed_headers_are_replayed(connect: Any, protect: Any) -> None:
    async def create_order() -> Response:
        return JSONResponse({}, headers={"ETag": "1", "X-Other": "1", "Set-Cookie": "a=1"})

    allow = {"allow": ["content-type", "etag", "set-cookie"], "set_cookie": True}
    async with connect(protect(create_order, policy={"replay_headers": allow})) as client:
        _, again = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert again.headers["idempotent-replayed"] == "true"
    assert (again.headers["etag"], again.headers["set-cookie"]) == ("1", "a=1")
    assert "x-other" not in again.headers


async def test_a_valid_key_is_echoed_on_refusals_where_it_is_exposed(
    connect: Any, protect: Any
) -> None:
    async def create_order() -> None: ...

    async with connect(protect(create_order, policy={"expose": ["key"]})) as client:
        await client.post("/orders", headers=KEY, json=1)
        reused = await client.post("/orders", headers=KEY, json=2)
        invalid = await client.post("/orders", headers={"Idempotency-Key": "a,b"})
    assert (reused.status_code, reused.headers["idempotency-key"]) == (422, "k")
    assert (invalid.status_code, "idempotency-key" in invalid.headers) == (400, False)


async def test_without_the_body_the_content_type_does_not_count(connect: Any, protect: Any) -> None:
    async def create_order() -> None: ...

    async def retry(client: Any, content_type: str) -> int:
        headers = {**KEY, "Content-Type": content_type}
        answer = await client.post("/orders", headers=headers, content=content_type.encode())
        return int(answer.status_code)

    none = {"fingerprint": {"body": "none"}}
    async with connect(protect(create_order, policy=none)) as client:
        assert [await retry(client, it) for it in ("text/plain", "text/html")] == [200, 200]
    async with connect(protect(create_order)) as client:
        assert [await retry(client, it) for it in ("text/plain", "text/html")] == [200, 422]


async def test_a_route_without_a_history_asks_its_clients_back_soon(
    connect: Any, protect: Any
) -> None:
    began, go = asyncio.Event(), asyncio.Event()

    async def create_order() -> None:
        began.set()
        await go.wait()

    async with connect(protect(create_order)) as client:
        first = asyncio.create_task(client.post("/orders", headers=KEY))
        await asyncio.wait_for(began.wait(), 20)
        refused = await client.post("/orders", headers=KEY)
        go.set()
        await first
    # A machine that stops for a while may make it more, never a whole lease.
    assert refused.status_code == 409
    assert 1 <= int(refused.headers["retry-after"]) < 10
