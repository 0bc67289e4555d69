"""Mistakes found where an application is put together, and stores found wanting."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import Any

import fakeredis
import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import PlainTextResponse
from idemptx import IdempotencyMiddleware, Severity, idempotent
from idemptx.backend import AsyncRedisBackend, InMemoryBackend, RedisBackend, from_url
from own_backends import OwnBackend, close
from protected import order_scope, protected
from protocol import KEY

PAYMENTS = {"profile": "payments", "scope": "shared"}


# The decorator's place


def test_a_decorator_above_its_route_is_refused() -> None:
    app, router = FastAPI(), APIRouter()
    for owner in (app, router):
        with pytest.raises(TypeError, match=r"below it"):

            @idempotent(InMemoryBackend())
            @owner.post("/orders")
            async def create_order() -> None: ...


def test_a_decorator_above_its_route_and_others_is_refused() -> None:
    app = FastAPI()

    def kept(handler: Any) -> Any:
        return handler

    with pytest.raises(TypeError, match=r"below it"):

        @kept
        @idempotent(
            InMemoryBackend(),
            key_ttl=60,
        )
        @app.post("/orders")
        @app.put("/orders")
        def create_order() -> None: ...


def test_a_second_decorator_is_refused() -> None:
    def kept(handler: Any) -> Any:
        @functools.wraps(handler)
        async def inner(*args: Any, **kwargs: Any) -> Any:
            return await handler(*args, **kwargs)

        return inner

    backend = InMemoryBackend()
    for between in (lambda it: it, kept):
        with pytest.raises(TypeError, match="twice"):

            @idempotent(InMemoryBackend())
            @between
            @idempotent(backend)
            async def create_order() -> None: ...


def test_a_handler_may_have_a_route_without_protection_too() -> None:
    app = FastAPI()

    async def create_order() -> None: ...

    app.post("/plain")(create_order)
    app.post("/safe")(idempotent(InMemoryBackend())(create_order))

    @app.post("/first")
    @idempotent(InMemoryBackend())
    @functools.lru_cache
    def cached() -> None: ...

    @idempotent(InMemoryBackend())
    async def later() -> None: ...

    app.post("/later")(later)


@pytest.mark.anyio
@pytest.mark.parametrize("place", ["parameter", "route", "below another", "router"])
async def test_a_decorated_dependency_is_refused(place: str) -> None:
    ran: list[str] = []

    @idempotent(InMemoryBackend())
    async def charge() -> None:
        ran.append("dependency")

    charged = Depends(charge)

    async def above(_charged: Any = charged) -> None: ...

    app, router = FastAPI(), APIRouter()
    depends = Depends(above) if place == "below another" else charged

    @router.post("/orders", dependencies=[depends] if place == "route" else [])
    async def create_order() -> None:
        ran.append("handler")

    @app.post("/parameter")
    async def parameter(_charged: Any = depends) -> None:
        ran.append("handler")

    app.include_router(router, dependencies=[depends] if place == "router" else [])
    path = "/orders" if place in {"route", "router"} else "/parameter"
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for headers in (KEY, {}):
            with pytest.raises(TypeError, match="decorator of its route instead"):
                await client.post(path, headers=headers)
    assert ran == []


@pytest.mark.anyio
async def test_a_handler_may_be_another_routes_handler_and_stand_below_other_decorators(
    connect: Any,
) -> None:
    numbers = iter(range(9))

    def other(handler: Any) -> Any:
        @functools.wraps(handler)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return await handler(*args, **kwargs)

        return wrapper

    class Orders:
        @idempotent(InMemoryBackend())
        async def create(self) -> int:
            return next(numbers)

    app = FastAPI()
    app.post("/bound")(Orders().create)

    @app.post("/below")
    @other
    @idempotent(InMemoryBackend())
    async def below(_number: int = Depends(lambda: 1)) -> int:  # noqa: FAST002
        return next(numbers)

    async with connect(app) as client:
        for path, number in (("/bound", 0), ("/below", 1)):
            tries = [await client.post(path, headers=KEY) for _ in range(2)]
            assert [answer.json() for answer in tries] == [number, number]


# Patterns


@pytest.mark.parametrize(
    ("pattern", "advice"),
    [
        ("POST /orders/*/refund", "'/orders/{name}/refund'"),
        ("/orders/**", "'/orders/*'"),
        ("/orders/*/lines/*", "'/orders/{name}/lines/*'"),
        ("/or*ders", "at its end"),
        ("/orders/{id", "brace"),
        ("/orders/{a}{b", "brace"),
    ],
)
def test_a_pattern_that_would_match_nothing_says_what_to_write(pattern: str, advice: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        IdempotencyMiddleware(FastAPI(), InMemoryBackend(), routes=[pattern])
    assert advice in str(refused.value)


# Probes


def test_a_probe_and_the_policy_that_asks_it_go_together() -> None:
    backend = InMemoryBackend()
    asking = {"on_orphan": "probe"}

    def probe(_orphan: Any) -> None:
        return None

    for make in (idempotent, functools.partial(IdempotencyMiddleware, FastAPI())):
        with pytest.raises(ValueError, match="give one"):
            make(backend, policy=asking)
        with pytest.raises(ValueError, match="never asked"):
            make(backend, probe=probe)
        make(backend, policy=asking, probe=probe)
    routes = {"/a": {"on_orphan": "probe"}, "/b": {}}
    IdempotencyMiddleware(FastAPI(), backend, routes=routes, probe=probe)


# URLs


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("http://host", "redis://HOST:PORT"),
        ("memory://", "write memory:"),
        ("memory", "write memory:"),
        ("keys.db", "did you mean sqlite:keys.db?"),
        ("./data/keys.sqlite3", "did you mean sqlite:./data/keys.sqlite3?"),
        ("redis", "redis://HOST:PORT"),
        ("sqlite", "'sqlite' is a scheme without its place"),
        ("postgres", "'postgres' is a scheme without its place"),
        ("localhost:6379", "redis://HOST:PORT"),
        ("", "sqlite:PATH"),
    ],
)
def test_a_url_of_no_store_says_what_to_write(url: str, advice: str) -> None:
    for make in (from_url, idempotent):
        with pytest.raises(ValueError, match=r"\w") as refused:
            make(url)
        assert advice in str(refused.value)


@pytest.mark.parametrize("url", [None, 1, b"memory:"])
def test_what_is_no_url_says_what_to_write(url: Any) -> None:
    with pytest.raises(TypeError, match="redis://HOST:PORT"):
        from_url(url)
    with pytest.raises(TypeError, match="a URL"):
        idempotent(url)


@pytest.mark.anyio
async def test_a_url_is_a_backend_that_all_its_users_share(connect: Any, tmp_path: Any) -> None:
    url, numbers, app = f"sqlite:{tmp_path}/records.db", iter(range(9)), FastAPI()
    for path in ("/a", "/b"):

        @app.post(path)
        @idempotent(url, policy={"key_space": "scope"})
        async def create_order() -> int:
            return next(numbers)

    async with connect(app) as client:
        tries = [await client.post("/a", headers=KEY) for _ in range(2)]
        elsewhere = await client.post("/b", headers=KEY)
    assert [answer.json() for answer in tries] == [0, 0]
    assert elsewhere.status_code == 422
    layer = IdempotencyMiddleware(app, url)
    await layer._engines.close()


# Stores that a careful policy does not take


def of_a_double() -> Any:
    return AsyncRedisBackend(fakeredis.FakeAsyncRedis())


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (InMemoryBackend, "only_process=True"),
        (lambda: from_url("memory:"), "only_process=True"),
        (of_a_double, "event loop"),
        (OwnBackend, "locks of its own"),
    ],
)
def test_payments_refuse_a_store_that_cannot_keep_its_promise(make: Any, advice: str) -> None:
    with pytest.raises(ValueError, match="on_unsafe_store") as refused:
        idempotent(make(), **PAYMENTS)
    assert advice in str(refused.value)
    with pytest.raises(ValueError, match="on_unsafe_store"):
        IdempotencyMiddleware(FastAPI(), make(), **PAYMENTS)
    idempotent(make(), **PAYMENTS, policy={"on_unsafe_store": "warn"})


@pytest.mark.anyio
async def test_payments_take_the_memory_of_the_only_process(connect: Any) -> None:
    @protected(InMemoryBackend(only_process=True), **PAYMENTS)
    async def app() -> dict[str, bool]:
        return {"ok": True}

    async with connect(app) as client:
        tries = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in tries] == [200, 200]
    assert tries[1].headers["idempotent-replayed"] == "true"


@pytest.mark.anyio
async def test_memory_says_once_that_it_is_one_process_alone(connect: Any, caplog: Any) -> None:
    report = await InMemoryBackend().check()
    assert [finding.severity for finding in report.findings] == [Severity.UNSAFE]
    assert (await InMemoryBackend(only_process=True).check()).findings == []
    layer = IdempotencyMiddleware(PlainTextResponse("fine"), InMemoryBackend())
    for _ in range(2):
        async with connect(layer) as client:
            assert (await client.post("/", headers=KEY)).status_code == 200
            await layer._engines.close()
    told = [message for message in caplog.messages if "in this process alone" in message]
    assert len(told) == 1


@pytest.mark.anyio
async def test_an_asynchronous_client_object_is_found_to_starve(redis_server: Any) -> None:
    class OwnClient(fakeredis.FakeAsyncRedis):
        pass

    backend = RedisBackend(OwnClient())
    report = await backend.check()
    await close(backend)
    assert report.is_unsafe
    assert "executed again elsewhere" in report.findings[0].text


# A store that is away


def outside_of_asyncio(app: Any, scope: Any, first: Any) -> list[Any]:
    """The messages of an application that runs in another kind of loop, until it awaits that."""
    sent: list[Any] = []

    async def receive() -> Any:
        return first

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(StopIteration):
        app(scope, receive, send).send(None)
    return sent


def test_a_server_without_asyncio_is_told_at_its_start() -> None:
    app = IdempotencyMiddleware(FastAPI(), InMemoryBackend())
    [message] = outside_of_asyncio(app, {"type": "lifespan"}, {"type": "lifespan.startup"})
    assert message["type"] == "lifespan.startup.failed"
    assert "asyncio worker" in message["message"]


def test_a_request_without_asyncio_is_told_what_to_choose() -> None:
    app = IdempotencyMiddleware(FastAPI(), InMemoryBackend())
    with pytest.raises(RuntimeError, match="asyncio worker"):
        outside_of_asyncio(app, order_scope(), {"type": "http.request", "body": b""})


@pytest.mark.anyio
@pytest.mark.parametrize("layer", ["decorator", "router", "mount", "middleware"])
async def test_a_store_that_is_away_at_start_is_one_line(
    connect: Any, caplog: Any, own_redis: Any, layer: str
) -> None:
    port = own_redis.reserve_port()
    backend = RedisBackend(f"redis://127.0.0.1:{port}")
    app: Any = FastAPI()

    async def create_order() -> dict[str, bool]:
        return {"ok": True}

    if layer == "middleware":
        app.post("/orders")(create_order)
        app = IdempotencyMiddleware(app, backend)
    else:
        owner = {"decorator": app, "router": APIRouter(), "mount": FastAPI()}[layer]
        owner.post("/orders")(idempotent(backend)(create_order))
        if layer == "router":
            app.include_router(owner)
        elif layer == "mount":
            app.mount("/", owner)
    await _start(app)
    with caplog.at_level(logging.WARNING, "idemptx"):
        until = asyncio.get_running_loop().time() + 30
        while not _told(caplog):
            assert asyncio.get_running_loop().time() < until
            await asyncio.sleep(0.01)
        async with connect(app) as client:
            for _ in range(3):
                assert (await client.post("/orders", headers=KEY)).status_code == 503
    assert len(_told(caplog)) == 1
    assert f"127.0.0.1:{port}" in _told(caplog)[0]
    await backend.aclose()


def _told(caplog: Any) -> list[str]:
    return [message for message in caplog.messages if "store cannot be reached" in message]


async def _start(app: Any) -> None:
    """The beginning of a lifespan."""
    messages = iter([{"type": "lifespan.startup"}])
    over = asyncio.Event()

    async def receive() -> Any:
        for message in messages:
            return message
        await over.wait()
        return {"type": "lifespan.shutdown"}

    async def send(message: Any) -> None:
        if message["type"] == "lifespan.startup.complete":
            over.set()

    await app({"type": "lifespan", "state": {}}, receive, send)
