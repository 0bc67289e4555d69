"""The middleware: bodies in both directions, and who ends first."""
# Annotations are read at run time by FastAPI, which sees no names of enclosing functions:
# ruff: noqa: TC003

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from idemptx import IdempotencyMiddleware, drain, idempotent
from idemptx._engines import engines_of
from idemptx.backend import InMemoryBackend
from middleware_app import behind_middleware
from protected import KEY, order_scope
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from fastapi import Request

pytestmark = pytest.mark.anyio


async def test_every_byte_and_line_is_replayed_but_for_those_of_one_moment(connect: Any) -> None:
    async def handle(request: Request) -> Response:
        response = Response(bytes(range(256)), 202, media_type="application/octet-stream")
        response.raw_headers += [
            (b"x-multi", b"1"),
            (b"etag", b'"7"'),
            (b"x-multi", b"2"),
            (b"x-latin", b"caf\xe9"),
            (b"date", b"Tue, 24 Nov 2026 00:00:00 GMT"),
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            (b"connection", b"x-hop"),
            (b"x-hop", b"1"),
        ]
        return response

    async with connect(_starlette(handle)) as client:
        first, again = [await client.post("/", headers=KEY) for _ in range(2)]
    assert first.content == again.content == bytes(range(256))
    assert [value for name, value in first.headers.raw if name == b"set-cookie"] == [b"a=1", b"b=2"]
    moment = {b"date", b"set-cookie", b"connection", b"x-hop"}
    assert sorted(
        line for line in again.headers.raw if line[0].lower() != b"idempotent-replayed"
    ) == sorted(line for line in first.headers.raw if line[0] not in moment)
    multiple = [value for name, value in again.headers.raw if name == b"x-multi"]
    assert multiple == [b"1", b"2"]


async def test_a_body_that_comes_in_pieces_is_one_body(connect: Any) -> None:
    received: list[list[bytes]] = []

    async def handle(request: Request) -> Response:
        received.append([chunk async for chunk in request.stream() if chunk])
        return Response(b"".join(received[-1]))

    async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async with connect(_starlette(handle)) as client:
        first = await client.post("/", headers=KEY, content=pieces(b"a", b"bc", b"", b"d"))
        again = await client.post("/", headers=KEY, content=b"abcd")
        other = await client.post("/", headers=KEY, content=pieces(b"ab", b"ce"))
    assert (first.content, again.content) == (b"abcd", b"abcd")
    assert (again.headers["idempotent-replayed"], other.status_code) == ("true", 422)
    assert received == [[b"a", b"bc", b"d"]]


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_too_large_is_refused_with_413(connect: Any, declared: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 100

    app = behind_middleware(policy={"request_bytes_max": 1000})
    async with connect(app) as client:
        content = b"x" * 3000 if declared else pieces()
        large = await client.post("/a", headers=KEY, content=content)
        small = await client.post("/a", headers=KEY, content=b"x" * 1000)
        unkeyed = await client.post("/a", content=b"x" * 3000)
    assert (large.status_code, large.json()["code"]) == (413, "body-too-large")
    assert (small.status_code, unkeyed.status_code) == (201, 201)


async def test_a_body_too_large_may_pass_unprotected(connect: Any) -> None:
    async def handle(request: Request) -> Response:
        return Response(str(len(await request.body())))

    app = _starlette(handle, policy={"request_bytes_max": 10, "on_large_body": "skip"})
    async with connect(app) as client:
        tries = [await client.post("/", headers=KEY, content=b"x" * 50) for _ in range(2)]
    assert [answer.text for answer in tries] == ["50", "50"]
    assert all("idempotent-replayed" not in answer.headers for answer in tries)


async def test_a_client_that_leaves_while_it_sends_its_body_claims_nothing(connect: Any) -> None:
    app = behind_middleware()
    messages = iter(
        [
            {"type": "http.request", "body": b"half", "more_body": True},
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        """Discards the message, since the client is gone."""

    async with connect(app) as client:
        request = client.build_request("POST", "/a", headers=KEY)
        await app(_http_scope(request), receive, send)
        assert app.state.calls == 0
        assert (await client.post("/a", headers=KEY)).status_code == 201


async def test_a_handler_survives_its_client_and_its_cancellation(connect: Any) -> None:
    began, go = asyncio.Event(), asyncio.Event()
    calls: list[str] = []

    async def handle(request: Request) -> Response:
        calls.append("began")
        began.set()
        await go.wait()
        calls.append("ended")
        # Nobody told it that the client has left.
        assert not await request.is_disconnected()
        return PlainTextResponse("done")

    app = _starlette(handle, wait_timeout=20)
    async with connect(app) as client:
        sending = asyncio.create_task(client.post("/", headers=KEY))
        await began.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        retry = asyncio.create_task(client.post("/", headers=KEY))
        await asyncio.sleep(0)
        go.set()
        answer = await asyncio.wait_for(retry, 20)
    assert (answer.text, answer.headers["idempotent-replayed"]) == ("done", "true")
    assert calls == ["began", "ended"]


async def test_drain_waits_for_detached_handlers(connect: Any) -> None:
    began, go = asyncio.Event(), asyncio.Event()
    ended: list[bool] = []

    async def handle(request: Request) -> Response:
        began.set()
        await go.wait()
        ended.append(True)
        return PlainTextResponse("done")

    async with connect(_starlette(handle)) as client:
        sending = asyncio.create_task(client.post("/", headers=KEY))
        await began.wait()
        sending.cancel()
        assert not await drain(0.05)
        asyncio.get_running_loop().call_later(0.05, go.set)
        assert await drain(20)
        assert ended == [True]


async def test_the_lifespan_ends_when_detached_handlers_have_ended(connect: Any) -> None:
    began, go = asyncio.Event(), asyncio.Event()
    log: list[str] = []

    async def handle(request: Request) -> Response:
        began.set()
        await go.wait()
        log.append("handler")
        return PlainTextResponse("done")

    app = _starlette(handle)
    sent: asyncio.Queue[str] = asyncio.Queue()
    events: asyncio.Queue[str] = asyncio.Queue()

    async def receive() -> Any:
        return {"type": await events.get()}

    async def send(message: Any) -> None:
        log.append(message["type"])
        sent.put_nowait(message["type"])

    lifespan = asyncio.create_task(app({"type": "lifespan", "state": {}}, receive, send))
    events.put_nowait("lifespan.startup")
    assert await sent.get() == "lifespan.startup.complete"
    async with connect(app) as client:
        sending = asyncio.create_task(client.post("/", headers=KEY))
        await began.wait()
        sending.cancel()
    events.put_nowait("lifespan.shutdown")
    asyncio.get_running_loop().call_later(0.1, go.set)
    await asyncio.wait_for(lifespan, 20)
    assert log == ["lifespan.startup.complete", "handler", "lifespan.shutdown.complete"]


async def test_a_raising_application_is_the_servers_500_and_releases_the_key(connect: Any) -> None:
    calls = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("oops")
        await PlainTextResponse(str(calls))(scope, receive, send)

    layered = IdempotencyMiddleware(app, storage_backend=InMemoryBackend())
    async with connect(layered) as client:
        answers = [await client.post("/", headers=KEY) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [500, 200, 200]
    assert answers[2].text == "2"


@pytest.mark.parametrize(
    ("outcome", "code", "calls_expected"),
    [
        (b"store", "result-unavailable", 1),
        (b"Unknown", "outcome-unknown", 1),
        # Not to be relied on any more: as the policy says.
        (b"release", "outcome-unknown", 1),
        (b" Release", "outcome-unknown", 1),
    ],
)
async def test_what_a_response_says_counts_although_it_breaks_off(
    connect: Any, outcome: bytes, code: str, calls_expected: int
) -> None:
    calls = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        del scope, receive
        nonlocal calls
        calls += 1
        headers = [(b"Idempotency-Outcome", outcome)]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError

    layered = IdempotencyMiddleware(app, InMemoryBackend(), policy={"on_panic": "quarantine"})
    async with connect(layered) as client:
        first, second = [await client.post("/", headers=KEY) for _ in range(2)]
    assert first.status_code == 500
    assert second.json()["code"] == code
    assert calls == calls_expected


async def test_a_stream_beyond_the_limit_is_passed_on_and_not_executed_again(connect: Any) -> None:
    calls = 0

    async def handle(request: Request) -> Response:
        nonlocal calls
        calls += 1
        return StreamingResponse(iter([b"x" * 400] * 5), 201, {"Location": "/exports/1"})

    async with connect(_starlette(handle, policy={"response_bytes_max": 1000})) as client:
        first, again = [await client.post("/", headers=KEY) for _ in range(2)]
    assert (first.status_code, first.content) == (201, b"x" * 2000)
    assert first.headers["idempotency-stored"] == "false"
    assert (again.status_code, again.json()["code"]) == (409, "result-unavailable")
    assert again.headers["location"] == "/exports/1"
    assert calls == 1


def _starlette(handle: Any, **options: Any) -> Any:
    app = Starlette(routes=[Route("/", handle, methods=["POST"])])
    app.add_middleware(IdempotencyMiddleware, storage_backend=InMemoryBackend(), **options)
    return app


def _http_scope(request: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.url.path,
        "raw_path": request.url.raw_path,
        "query_string": request.url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
    }


@pytest.mark.parametrize("layer", ["decorator", "middleware"])
async def test_events_end_when_their_client_leaves(layer: str) -> None:
    """A server reports that, and cancels nothing; what is then sent goes nowhere."""
    app, ended, left = FastAPI(), asyncio.Event(), asyncio.Event()
    backend = InMemoryBackend()

    async def events() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: x\n\n"
                await asyncio.sleep(0)
        finally:
            ended.set()

    async def follow() -> Any:
        return StreamingResponse(events(), media_type="text/event-stream")

    app.post("/orders")(idempotent(backend)(follow) if layer == "decorator" else follow)
    server = app if layer == "decorator" else IdempotencyMiddleware(app, backend)
    requests = [{"type": "http.request", "body": b"", "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        if requests:
            return requests.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == 5:
            left.set()
        await asyncio.sleep(0)

    await asyncio.wait_for(server(order_scope(), receive, send), 20)
    assert ended.is_set()
    assert await drain(20)
    assert engines_of(backend).here().executions == 0
