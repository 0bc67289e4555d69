"""Garbage of requests: nothing is left that Python's collector would have to find."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from idemptx import IdempotencyMiddleware, idempotent
from idemptx.backend import InMemoryBackend, RedisBackend
from protected import order_scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.anyio

REQUESTS = 20


def decorated(handler: Callable[..., Any], backend: Any) -> FastAPI:
    app = FastAPI()
    app.post("/orders")(idempotent(backend)(handler))
    return app


def behind_middleware(handler: Callable[..., Any], backend: Any) -> FastAPI:
    app = FastAPI()
    app.post("/orders")(handler)
    app.add_middleware(IdempotencyMiddleware, storage_backend=backend)
    return app


async def order() -> dict[str, int]:
    return {"order": 1}


def order_in_thread() -> dict[str, int]:
    return {"order": 1}


@pytest.fixture
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("collector_off")
@pytest.mark.parametrize("store", ["memory", "redis"])
@pytest.mark.parametrize("handler", [order, order_in_thread])
@pytest.mark.parametrize("front", [decorated, behind_middleware])
async def test_no_request_leaves_a_reference_cycle(
    front: Callable[..., FastAPI], handler: Callable[..., Any], store: str, redis_url: str
) -> None:
    backend: Any = InMemoryBackend() if store == "memory" else RedisBackend(redis_url)
    app = front(handler, backend)
    found = []
    for key in ("first", "key", "key"):  # What the first requests make once is no request's.
        await _requests(app, key)
        found.append(gc.collect())
    await backend.aclose()
    assert max(found[1:]) < REQUESTS, found


async def _requests(app: FastAPI, key: str) -> None:
    for number in range(REQUESTS):
        statuses: list[int] = []
        scope = order_scope()
        scope["headers"] = [(b"idempotency-key", f"{key}-{number}".encode())]

        body = iter([{"type": "http.request", "body": b"{}", "more_body": False}])

        async def receive(body: Iterator[dict[str, Any]] = body) -> dict[str, Any]:
            for message in body:
                return message
            await asyncio.get_running_loop().create_future()
            return {"type": "http.disconnect"}

        async def send(message: Any, statuses: list[int] = statuses) -> None:
            statuses.append(message.get("status", 200))

        await app(scope, receive, send)
        assert set(statuses) == {200}
