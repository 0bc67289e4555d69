"""Decorated handlers may return everything that they might without the decorator."""
# Annotations are read at run time by FastAPI, which sees no names of enclosing functions:
# ruff: noqa: TC003

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import (
    FastAPI,
    HTTPException,
    Request,
    Response,
)
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    StreamingResponse,
)
from idemptx import idempotent
from idemptx.backend import InMemoryBackend
from protected import KEY, protected
from pydantic import BaseModel

pytestmark = pytest.mark.anyio

OURS = {
    b"idempotency-key",
    b"x-idempotency-signature",
    b"x-idempotency-status",
    b"idempotent-replayed",
    b"idempotency-stored",
}
NOT_REPLAYED = {b"set-cookie", b"date", b"server", b"x-request-id", b"content-length"}


class Receipt(BaseModel):
    total: int
    note: str | None = None
    secret: str = "hidden"


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Pretty(JSONResponse):
    media_type = "application/vnd.pretty+json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, indent=3, sort_keys=True).encode()


# What handlers return, with the parameters of their route.


def a_dict() -> Any:
    return {"b": 1, "a": [1.0, "\u00e4\u20ac"]}


def a_list() -> Any:
    return [1, None, "x"]


def nothing() -> Any:
    return None


def a_string() -> Any:
    return "text as JSON"


def a_model() -> Any:
    return Receipt(total=5)


def a_dataclass() -> Any:
    return Point(1, 2)


def json_response() -> Any:
    return JSONResponse({"ok": True}, 202, {"X-A": "1", "ETag": '"7"', "Location": "/orders/7"})


def html() -> Any:
    return HTMLResponse("<p>gr\u00fc\u00df dich</p>")


def plain_text() -> Any:
    return PlainTextResponse("thank you", 201)


def redirect() -> Any:
    return RedirectResponse("/orders/7?a=\u00e4", 303)


def no_content() -> Any:
    return Response(status_code=204)


def not_modified() -> Any:
    return Response(status_code=304, headers={"ETag": '"7"'})


def binary() -> Any:
    return Response(bytes(range(256)), media_type="application/octet-stream")


def refused_payment() -> Any:
    raise HTTPException(402, {"why": "no money"}, {"X-Why": "money"})


def repeated_lines() -> Any:
    response = PlainTextResponse("x")
    response.raw_headers += [
        (b"x-multi", b"1"),
        (b"x-multi", b"2"),
        (b"link", b"</a>; rel=a"),
        (b"x-latin", b"caf\xe9"),
    ]
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


def small_stream() -> Any:
    def chunks() -> Iterator[bytes]:
        yield from (b"one ", b"two ", b"three")

    return StreamingResponse(chunks(), media_type="text/csv")


def small_async_stream() -> Any:
    async def chunks() -> AsyncIterator[str]:
        for chunk in ("one ", "two ", "three"):
            yield chunk

    return StreamingResponse(chunks(), media_type="text/csv")


def a_file() -> Any:
    return FileResponse(__file__, filename="tests.py", media_type="text/x-python")


RETURNS: list[tuple[Callable[[], Any], dict[str, Any]]] = [
    (a_dict, {}),
    (a_list, {"status_code": 201}),
    (nothing, {}),
    (nothing, {"status_code": 204, "response_model": None}),
    (a_string, {}),
    (a_string, {"response_class": PlainTextResponse}),
    (a_dict, {"response_class": Pretty}),
    (a_model, {}),
    (a_model, {"response_model": Receipt, "status_code": 201}),
    (a_model, {"response_model": Receipt, "response_model_exclude_none": True}),
    (a_model, {"response_model": Receipt, "response_model_exclude_unset": True}),
    (a_model, {"response_model": Receipt, "response_model_exclude_defaults": True}),
    (a_model, {"response_model": Receipt, "response_model_exclude": {"secret"}}),
    (a_model, {"response_model": Receipt, "response_model_include": {"total"}}),
    (a_model, {"response_model": Receipt, "response_class": Pretty}),
    (a_dataclass, {}),
    (json_response, {}),
    (json_response, {"response_model": None, "status_code": 201}),
    (html, {"response_class": HTMLResponse}),
    (plain_text, {}),
    (redirect, {}),
    (no_content, {}),
    (not_modified, {}),
    (binary, {}),
    (refused_payment, {}),
    (repeated_lines, {}),
    (small_stream, {}),
    (small_async_stream, {}),
    (a_file, {}),
]


def _named(case: Any) -> str:
    return "-".join([case.__name__] if callable(case) else sorted(case) or ["plain"])


@pytest.mark.parametrize("is_async", [True, False], ids=["async-def", "def"])
@pytest.mark.parametrize(("make", "options"), RETURNS, ids=_named)
async def test_the_answer_is_the_unprotected_one_and_its_replay_has_the_same_bytes_and_lines(
    connect: Any, make: Callable[[], Any], options: dict[str, Any], is_async: bool
) -> None:
    calls = 0

    def plain() -> Any:
        nonlocal calls
        calls += 1
        return make()

    async def coroutine() -> Any:
        return plain()

    handler = coroutine if is_async else plain
    app = FastAPI()
    app.post("/plain", **options)(handler)
    app.post("/safe", **options)(idempotent(InMemoryBackend())(handler))
    async with connect(app) as client:
        unprotected = await client.post("/plain", headers=KEY)
        first = await client.post("/safe", headers=KEY)
        replays = [await client.post("/safe", headers=KEY) for _ in range(2)]
    assert first.status_code == unprotected.status_code
    assert first.content == unprotected.content
    # A streamed body that was collected may have got a length.
    lines = _lines(first)
    assert [line for line in lines if line in _lines(unprotected)] == _lines(unprotected)
    assert {name for name, _ in lines} - {name for name, _ in _lines(unprotected)} <= {
        b"content-length"
    }
    assert first.headers["x-idempotency-status"] == "new"
    assert calls == 2
    for replay in replays:
        assert replay.status_code == first.status_code
        assert replay.content == first.content
        assert _kept(replay) == _kept(first)
        assert replay.headers["x-idempotency-status"] == "hit"
        assert replay.headers["idempotent-replayed"] == "true"
        assert "set-cookie" not in replay.headers
        if "content-length" in replay.headers:
            assert int(replay.headers["content-length"]) == len(replay.content)


def _lines(answer: Any) -> list[tuple[bytes, bytes]]:
    raw = [(name.lower(), value) for name, value in answer.headers.raw]
    return [(name, value) for name, value in raw if name not in OURS]


def _kept(answer: Any) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in _lines(answer) if name not in NOT_REPLAYED]


async def test_lines_with_the_same_name_keep_their_order(connect: Any) -> None:
    names = [b"x-b", b"link", b"x-a", b"x-b", b"link"]

    @protected()
    async def app() -> Any:
        response = Response(b"x")
        response.raw_headers += [(name, b"%d" % at) for at, name in enumerate(names)]
        return response

    async with connect(app) as client:
        tries = [await client.post("/orders", headers=KEY) for _ in range(2)]
    for answer in tries:
        for name in set(names):
            values = [value for line, value in answer.headers.raw if line == name]
            assert values == [b"%d" % at for at, it in enumerate(names) if it == name]


@pytest.mark.parametrize("make", [small_stream, a_file])
async def test_an_answer_is_over_only_when_its_body_has_been_cleaned_up(
    connect: Any, make: Callable[[], Any]
) -> None:
    """A server may end the loop after its last answer, as it may without the decorator."""
    ended: list[str] = []
    app = FastAPI()

    class Watched(StreamingResponse if make is small_stream else FileResponse):  # type: ignore[misc]
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await super().__call__(scope, receive, send)
            await asyncio.sleep(0)
            ended.append("body")

    async def handle() -> Any:
        response = make()
        response.__class__ = Watched
        return response

    app.post("/plain")(handle)
    app.post("/safe")(idempotent(InMemoryBackend())(handle))
    async with connect(app) as client:
        for path in ("/plain", "/safe"):
            assert (await client.post(path, headers=KEY)).status_code == 200
            assert ended == ["body"], path
            ended.clear()


@pytest.mark.parametrize("status", [401, 403, 404, 409, 422, 429, 500, 503])
@pytest.mark.parametrize("raises", [True, False], ids=["raised", "returned"])
async def test_whether_a_failure_is_kept_depends_on_its_status(
    connect: Any, status: int, raises: bool
) -> None:
    calls = 0

    @protected()
    async def app() -> Any:
        nonlocal calls
        calls += 1
        if raises:
            raise HTTPException(status, "no")
        return JSONResponse({"detail": "no"}, status)

    async with connect(app) as client:
        first, second = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert first.status_code == second.status_code == status
    assert first.json() == second.json() == {"detail": "no"}
    kept = status == 422
    assert calls == (1 if kept else 2)
    assert first.headers.get("idempotency-stored") == (None if kept else "false")
    assert second.headers["x-idempotency-status"] == ("hit" if kept else "new")


async def test_a_rejected_payload_may_be_corrected_with_the_same_key(connect: Any) -> None:
    @protected()
    async def app(request: Request) -> Any:
        if await request.json() < 1:
            raise HTTPException(422, "too small")
        return {"ok": True}

    async with connect(app) as client:
        answers = [await client.post("/orders", headers=KEY, json=n) for n in (0, 0, 1, 1)]
    assert [answer.status_code for answer in answers] == [422, 422, 200, 200]
    marks = [answer.headers["x-idempotency-status"] for answer in answers]
    assert marks == ["new", "hit", "new", "hit"]


async def test_an_unexpected_exception_releases_the_key_and_is_the_servers_500(
    connect: Any,
) -> None:
    calls = 0

    @protected()
    async def app() -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("oops")
        return {"n": calls}

    async with connect(app) as client:
        answers = [await client.post("/orders", headers=KEY) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [500, 200, 200]
    assert calls == 2


async def test_an_unexpected_exception_quarantines_the_key_in_the_payments_profile(
    connect: Any,
) -> None:
    calls = 0

    @protected(InMemoryBackend(only_process=True), profile="payments", scope="shared")
    async def app() -> Any:
        nonlocal calls
        calls += 1
        raise RuntimeError("oops")

    async with connect(app) as client:
        answers = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert answers[0].status_code == 500
    assert (answers[1].status_code, answers[1].json()["code"]) == (409, "outcome-unknown")
    assert calls == 1


async def test_an_exception_with_a_handler_is_an_answer_that_is_replayed(connect: Any) -> None:
    calls = 0
    app = FastAPI()

    class OutOfStockError(Exception):
        pass

    @app.exception_handler(OutOfStockError)
    async def handle(request: Request, error: Exception) -> Response:
        return Pretty({"problem": str(error)}, 410, {"X-Calls": str(calls)})

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    def create_order() -> Any:
        nonlocal calls
        calls += 1
        raise OutOfStockError("tea")

    async with connect(app) as client:
        first, again = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert (first.status_code, again.status_code, calls) == (410, 410, 1)
    assert first.content == again.content
    assert _kept(first) == _kept(again)
    assert again.headers["x-idempotency-status"] == "hit"


async def test_an_invalid_result_is_a_500_that_is_not_kept(connect: Any) -> None:
    calls = 0
    app = FastAPI()

    @app.post("/orders", response_model=Receipt)
    @idempotent(InMemoryBackend())
    async def create_order() -> Any:
        nonlocal calls
        calls += 1
        return {"total": "not a number"} if calls == 1 else {"total": 1}

    async with connect(app) as client:
        answers = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [500, 200]


# Streams and files that are too large to be kept.


@pytest.mark.parametrize("kind", ["stream", "whole", "file"])
async def test_a_body_too_large_to_keep_is_passed_on_and_not_executed_again(
    connect: Any, kind: str, tmp_path: Path
) -> None:
    calls = 0
    content = bytes(range(256)) * 64
    (tmp_path / "large").write_bytes(content)

    @protected(path="/export", policy={"response_bytes_max": 1000})
    async def app() -> Any:
        nonlocal calls
        calls += 1
        if kind == "file":
            return FileResponse(tmp_path / "large")
        if kind == "whole":
            return Response(content)
        chunks = (content[at : at + 500] for at in range(0, len(content), 500))
        return StreamingResponse(chunks, headers={"Location": "/exports/1"})

    async with connect(app) as client:
        first = await client.post("/export", headers=KEY)
        again = await client.post("/export", headers=KEY)
    assert first.content == content
    assert first.headers["idempotency-stored"] == "false"
    assert (again.status_code, again.json()["code"]) == (409, "result-unavailable")
    assert again.headers.get("location") == first.headers.get("location")
    assert calls == 1


async def test_events_arrive_live_and_are_not_executed_again(serve: Any, redis_server: Any) -> None:
    server = serve("streams:app")
    async with server.connect_async() as client:
        async with client.stream("POST", "/events", headers=KEY) as answer:
            assert answer.headers["idempotency-stored"] == "false"
            received = [await anext(lines := answer.aiter_lines())]
            # The next event is made only when this test has seen the first.
            await client.post("/go")
            received += [line async for line in lines if line]
        again = await client.post("/events", headers=KEY)
    assert received == ["data: 1", "data: 2"]
    assert (again.status_code, again.json()["code"]) == (409, "result-unavailable")


async def test_a_body_that_breaks_off_is_not_kept(connect: Any) -> None:
    calls = 0

    @protected(path="/export")
    async def app() -> Any:
        nonlocal calls
        calls += 1

        async def chunks() -> AsyncIterator[bytes]:
            yield b"half"
            if calls == 1:
                raise RuntimeError("oops")

        return StreamingResponse(chunks())

    async with connect(app) as client:
        answers = [await client.post("/export", headers=KEY) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [500, 200, 200]
    assert calls == 2
