"""Patterns of the middleware against the routes of the application below it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.staticfiles import StaticFiles
from idemptx import IdempotencyMiddleware
from idemptx.backend import InMemoryBackend
from protocol import KEY
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _nothing_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idemptx._reports._Reports.warned", set())


async def answer(*_: Any) -> Any:
    return PlainTextResponse("fine")


class Endpoint(HTTPEndpoint):
    async def post(self, _request: Any) -> Any:
        return PlainTextResponse("fine")


def shop() -> FastAPI:
    """An application with a route of each kind."""
    app, inner, nested = FastAPI(), APIRouter(prefix="/v1"), APIRouter()
    app.post("/orders")(answer)
    app.patch("/orders/{id}")(answer)
    app.get("/reports/{id}")(answer)
    nested.post("/refunds/{refund:int}/lines")(answer)
    inner.include_router(nested, prefix="/nested")
    app.include_router(inner, prefix="/api")
    app.mount("/files", StaticFiles(directory="."))
    mounted = [Route("/{name}/items", answer, methods=["PUT"]), Route("/class", Endpoint)]
    app.mount("/mounted/{tenant}", Starlette(routes=mounted))
    app.mount("/legacy", answer)
    return app


def behind(app: Any, **options: Any) -> Any:
    app.add_middleware(IdempotencyMiddleware, storage_backend=InMemoryBackend(), **options)
    return app


def told(caplog: Any) -> list[str]:
    return [message for message in caplog.messages if "pattern" in message]


@pytest.mark.parametrize(
    ("pattern", "advice"),
    [
        ("POST /order", "did you mean '/orders'?"),
        ("POST /orders/", "did you mean '/orders'?"),
        ("PUT /orders", "only for POST"),
        ("/reports/{id}", "only for GET"),
        ("/v1/nested/refunds/7/lines", "did you mean '/api/v1/nested/refunds/{refund:int}/lines'?"),
        ("/api/v1/nested/refunds/7/8/lines", "/api/v1/nested/refunds/{refund:int}/lines"),
        ("POST /files/*", "only for GET, HEAD"),
        ("PUT /mounted/items", "compared with the whole path"),
        ("POST /mounted/a/b/items", "only for PUT"),
        ("/nothing/like/it", "compared with the whole path"),
    ],
)
async def test_a_pattern_without_a_route_is_told_once(
    connect: Any, caplog: Any, pattern: str, advice: str
) -> None:
    app = behind(shop(), routes=[pattern])
    with caplog.at_level(logging.WARNING, "idemptx"):
        for _ in range(2):
            async with connect(app) as client:
                await client.post("/orders", headers=KEY)
    [message] = told(caplog)
    assert repr(pattern) in message
    assert advice in message


@pytest.mark.parametrize(
    "pattern",
    [
        "POST /orders",
        "/orders/*",
        "/*",
        "PATCH /orders/{order}",
        "PATCH /orders/latest",
        "/api/v1/nested/refunds/7/lines",
        "/api/*",
        "/{any}/v1/{path:path}",
        "PUT /mounted/acme/blue/items",
        "/mounted/acme/class",
        "POST /legacy/anything/at/all",
    ],
)
async def test_a_pattern_with_a_route_is_not(connect: Any, caplog: Any, pattern: str) -> None:
    async with connect(behind(shop(), routes=[pattern])) as client:
        await client.post("/orders", headers=KEY)
    assert told(caplog) == []


async def test_it_is_told_when_the_application_has_started(caplog: Any) -> None:
    app = shop()

    @app.post("/late")
    async def late() -> None: ...

    layer = IdempotencyMiddleware(app, InMemoryBackend(), routes=["/late", "/later"])
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    before: list[int] = []

    async def receive() -> Any:
        before.append(len(told(caplog)))
        return next(messages)

    async def send(_message: Any) -> None: ...

    await layer({"type": "lifespan", "state": {}}, receive, send)
    assert before == [0, 1]
    assert "'/later'" in told(caplog)[0]


async def test_an_exclusion_without_a_route_is_told_too(connect: Any, caplog: Any) -> None:
    app = behind(shop(), routes={"/orders/heatlh": None, "/excluded": None, "/*": {}})
    async with connect(app) as client:
        await client.post("/orders", headers=KEY)
    [message] = told(caplog)
    assert "'/excluded'" in message
    assert "excludes" in message


async def test_middleware_in_between_and_a_mount_above_do_not_hide_the_routes(
    connect: Any, caplog: Any
) -> None:
    async def pass_on(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    # Below a mount, patterns are compared with the rest of the path.
    layer = Middleware(
        IdempotencyMiddleware, storage_backend=InMemoryBackend(), routes=["/a", "/mount/a", "/b"]
    )
    plain = Middleware(BaseHTTPMiddleware, dispatch=pass_on)
    route = Route("/a", answer, methods=["POST"])
    inner = Starlette(routes=[route], middleware=[layer, plain])
    hosted = Host("b.test", Router([Route("/b", answer, methods=["POST"])]))
    inner.router.routes.append(hosted)
    async with connect(Starlette(routes=[Mount("/mount", inner)])) as client:
        await client.post("/mount/a", headers=KEY)
    [message] = told(caplog)
    assert "'/mount/a'" in message


async def test_an_application_whose_routes_cannot_be_known_is_left_alone(
    connect: Any, caplog: Any
) -> None:
    async def opaque(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("fine")(scope, receive, send)

    with_default = Starlette(routes=[Route("/a", answer)])
    with_default.router.default = opaque
    for app in (opaque, with_default):
        layer = IdempotencyMiddleware(app, InMemoryBackend(), routes=["/unheard-of"])
        async with connect(layer) as client:
            assert (await client.post("/unheard-of", headers=KEY)).status_code == 200
    assert told(caplog) == []


def test_a_pattern_behind_one_that_takes_everything_is_told(caplog: Any) -> None:
    make = IdempotencyMiddleware
    hidden: list[dict[str, Any]] = [
        {"/orders/*": {}, "POST /orders/exempt": None},
        {"/orders/{id}": {}, "/orders/{name}": {"required": True}},
        {"/a/{path:path}": {}, "/a/{b}/c*": None},
        {"POST,PUT /b": {}, "PUT /b": None},
    ]
    for number, routes in enumerate(hidden):
        make(FastAPI(), InMemoryBackend(), routes=routes)
        assert len(told(caplog)) == number + 1
        earlier, later = routes
        assert f"{later!r} is never reached" in told(caplog)[-1]
        assert repr(earlier) in told(caplog)[-1]
    caplog.clear()
    reached: list[dict[str, Any]] = [
        {"POST /orders/exempt": None, "/orders/*": {}},
        {"/orders/{id}": {}, "/orders/{path:path}": None},
        {"/orders/x": {}, "/orders/{id}": None},
        {"/orders//": {}, "/orders/*": None},
        {"/orders/{a}/{b}": {}, "/orders/*": None},
        {"PUT /b": {}, "/b": None},
        # Nothing differs.
        {"/orders/*": {}, "/orders/new": {}},
    ]
    for routes in reached:
        make(FastAPI(), InMemoryBackend(), routes=routes)
    assert told(caplog) == []


@pytest.mark.parametrize(
    ("routes", "advice"),
    [
        ([], "routes is empty"),
        ({}, "routes is empty"),
        (3, "routes is a list of patterns"),
        (b"/orders", "routes is a list of patterns"),
        ([3], 'a route is a text such as "POST /orders", not 3'),
        ({"/orders": 3}, "the policy of '/orders' is a mapping"),
        (["POST /orders?page=1"], "did you mean '/orders'?"),
        (["/orders#top"], "did you mean '/orders'?"),
        (["/caf%C3%A9/*"], "did you mean '/café/*'?"),
    ],
)
async def test_routes_that_would_protect_nothing_are_refused(routes: Any, advice: str) -> None:
    with pytest.raises((TypeError, ValueError)) as refused:
        IdempotencyMiddleware(FastAPI(), InMemoryBackend(), routes=routes)
    assert advice in str(refused.value)
