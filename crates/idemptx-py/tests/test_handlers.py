"""Decorated handlers may take and return everything that they might without the decorator."""
# Annotations are read at run time by FastAPI, which sees no names of enclosing functions:
# ruff: noqa: TC003, FAST002

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import fastapi.routing
import pytest
from apps import present_annotations
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    File,
    Form,
    Header,
    HTTPException,
    Request,
    Response,
    UploadFile,
)
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    StreamingResponse,
)
from idemptx import current_execution, idempotent
from idemptx.backend import InMemoryBackend
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Route

pytestmark = pytest.mark.anyio

KEY = {"Idempotency-Key": "k"}
OURS = {
    b"idempotency-key",
    b"x-idempotency-signature",
    b"x-idempotency-status",
    b"idempotent-replayed",
    b"idempotency-stored",
}
NOT_REPLAYED = {b"set-cookie", b"date", b"server", b"x-request-id", b"content-length"}


class Order(BaseModel):
    item: str = "tea"
    count: int = 1


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
    app = FastAPI()

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    async def create_order() -> Any:
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
    app = FastAPI()

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    async def create_order() -> Any:
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
    app = FastAPI()

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    async def create_order(request: Request) -> Any:
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
    app = FastAPI()

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    async def create_order() -> Any:
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
    app = FastAPI()

    @app.post("/orders")
    @idempotent(InMemoryBackend(), profile="payments", scope="shared")
    async def create_order() -> Any:
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
    app = FastAPI()

    @app.post("/export")
    @idempotent(InMemoryBackend(), policy={"response_bytes_max": 1000})
    async def export() -> Any:
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
    app = FastAPI()

    @app.post("/export")
    @idempotent(InMemoryBackend())
    async def export() -> Any:
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


# What handlers take.


async def test_a_handler_needs_no_request_parameter(connect: Any) -> None:
    app = FastAPI()

    @app.post("/orders/{number}")
    @idempotent(InMemoryBackend())
    async def create_order(
        number: int, order: Order, urgent: bool = False, x_shop: str = Header("main")
    ) -> dict[str, Any]:
        return {"number": number, **order.model_dump(), "urgent": urgent, "shop": x_shop}

    headers = {**KEY, "X-Shop": "north"}
    async with connect(app) as client:
        tries = [
            await client.post("/orders/7?urgent=1", headers=headers, json={"count": 2})
            for _ in range(2)
        ]
        invalid = await client.post(
            "/orders/7", headers={"Idempotency-Key": "l"}, json={"count": "x"}
        )
    expected = {"number": 7, "item": "tea", "count": 2, "urgent": True, "shop": "north"}
    assert [answer.json() for answer in tries] == [expected] * 2
    assert tries[1].headers["x-idempotency-status"] == "hit"
    assert invalid.status_code == 422
    assert "detail" in invalid.json()


async def test_the_documentation_shows_the_handlers_own_parameters(connect: Any) -> None:
    def create_order(number: int, order: Order, response: Response) -> Receipt: ...

    plain, safe = FastAPI(), FastAPI()
    plain.post("/orders/{number}")(create_order)
    safe.post("/orders/{number}")(idempotent(InMemoryBackend())(create_order))
    assert safe.openapi() == plain.openapi()


async def test_the_request_may_have_any_name_and_annotation(connect: Any) -> None:
    class SpecialRequest(Request):
        pass

    app = FastAPI()
    backend = InMemoryBackend()

    @app.post("/a")
    @idempotent(backend)
    async def named(http: Request) -> Any:
        return {"path": http.url.path}

    @app.post("/b")
    @idempotent(backend)
    def annotated(incoming: Annotated[Request, "the request"]) -> Any:
        return {"path": incoming.url.path}

    async with connect(app) as client:
        for path in ("/a", "/b"):
            tries = [await client.post(path, headers=KEY) for _ in range(2)]
            assert [answer.json() for answer in tries] == [{"path": path}] * 2


async def test_annotations_that_are_no_text_work_too(connect: Any) -> None:
    async with connect(present_annotations.app) as client:
        tries = [await client.post("/orders", headers=KEY, json={"item": "x"}) for _ in range(2)]
    assert [answer.json() for answer in tries] == [{"item": "x", "calls": 1}] * 2


async def test_plain_functions_run_in_threads_and_leave_the_loop_free(connect: Any) -> None:
    loop_thread = threading.current_thread()
    go = threading.Event()
    threads: list[threading.Thread] = []
    app = FastAPI()

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    def create_order() -> Any:
        threads.append(threading.current_thread())
        assert go.wait(20)
        return {"ok": True}

    @app.get("/health")
    async def health() -> Any:
        go.set()
        return {"status": "fine"}

    async with connect(app) as client:
        order, health_check = await asyncio.gather(
            client.post("/orders", headers=KEY), client.get("/health")
        )
    assert (order.status_code, health_check.status_code) == (200, 200)
    assert threads
    assert loop_thread not in threads


async def test_forms_are_compared_by_their_fields(connect: Any) -> None:
    app = FastAPI()

    @app.post("/form")
    @idempotent(InMemoryBackend())
    async def take(amount: Annotated[int, Form()], note: Annotated[str, Form()] = "") -> Any:
        return {"amount": amount, "note": note}

    async with connect(app) as client:
        first = await client.post("/form", headers=KEY, data={"amount": 5, "note": "\u00e4"})
        again = await client.post("/form", headers=KEY, data={"amount": 5, "note": "\u00e4"})
        other = await client.post("/form", headers=KEY, data={"amount": 6, "note": "\u00e4"})
    assert first.json() == again.json() == {"amount": 5, "note": "\u00e4"}
    assert (again.headers["x-idempotency-status"], other.status_code) == ("hit", 422)


async def test_uploads_are_compared_by_their_contents_whatever_the_boundary(connect: Any) -> None:
    app = FastAPI()

    @app.post("/upload")
    @idempotent(InMemoryBackend())
    async def take(file: Annotated[UploadFile, File()], note: Annotated[str, Form()]) -> Any:
        content = await file.read()
        return {"bytes": len(content), "name": file.filename, "note": note}

    async def send(client: Any, content: bytes) -> Any:
        return await client.post(
            "/upload",
            headers=KEY,
            data={"note": "n"},
            files={"file": ("a.bin", content, "application/octet-stream")},
        )

    content = bytes(range(256)) * 1000
    async with connect(app) as client:
        first, again = await send(client, content), await send(client, content)
        other = await send(client, content[:-1] + b"x")
    assert first.request.headers["content-type"] != again.request.headers["content-type"]
    assert first.json() == again.json() == {"bytes": 256_000, "name": "a.bin", "note": "n"}
    assert (again.headers["x-idempotency-status"], other.status_code) == ("hit", 422)


async def test_a_binary_body_reaches_the_handler_unchanged(connect: Any) -> None:
    app = FastAPI()

    @app.post("/binary")
    @idempotent(InMemoryBackend())
    async def take(request: Request) -> Any:
        chunks = [chunk async for chunk in request.stream()]
        return Response(b"".join(chunks)[::-1])

    content = bytes(range(256))
    async with connect(app) as client:
        tries = [await client.post("/binary", headers=KEY, content=content) for _ in range(2)]
        other = await client.post("/binary", headers=KEY, content=content[1:])
    assert [answer.content for answer in tries] == [content[::-1]] * 2
    assert other.status_code == 422


# Dependencies, background tasks, routers.


async def test_dependencies_run_for_each_request_and_can_be_overridden(connect: Any) -> None:
    seen: list[str] = []

    def user() -> str:
        seen.append("user")
        return "alice"

    app = FastAPI()

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    async def create_order(name: str = Depends(user)) -> Any:
        return {"by": name}

    async with connect(app) as client:
        tries = [await client.post("/orders", headers=KEY) for _ in range(2)]
        app.dependency_overrides[user] = lambda: "bob"
        other = await client.post("/orders", headers={"Idempotency-Key": "l"})
    assert [answer.json() for answer in tries] == [{"by": "alice"}] * 2
    assert other.json() == {"by": "bob"}
    assert seen == ["user", "user"]


@pytest.mark.parametrize("fails", [True, False])
async def test_a_dependency_with_yield_sees_how_the_handler_ended(
    connect: Any, fails: bool
) -> None:
    log: list[str] = []

    async def transaction() -> AsyncIterator[str]:
        log.append("begin")
        try:
            yield "t"
        except HTTPException as error:
            log.append(f"rollback {error.status_code}")
            raise
        else:
            log.append("commit")
        finally:
            log.append("close")

    app = FastAPI()

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    async def create_order(transaction: str = Depends(transaction)) -> Any:
        log.append("handler")
        if fails:
            raise HTTPException(402, "no money")
        return {"ok": True}

    async with connect(app) as client:
        tries = [await client.post("/orders", headers=KEY) for _ in range(2)]
    first = ["begin", "handler", "rollback 402" if fails else "commit", "close"]
    assert log[:4] == first
    assert [answer.status_code for answer in tries] == [402 if fails else 200] * 2
    assert tries[1].headers["x-idempotency-status"] == "hit"
    assert "handler" not in log[4:]


async def test_a_dependency_may_answer_a_failure_in_its_own_way(connect: Any) -> None:
    async def translating() -> AsyncIterator[None]:
        try:
            yield
        except KeyError:
            raise HTTPException(404, "no such item") from None

    app = FastAPI()

    @app.post("/orders", dependencies=[Depends(translating)])
    @idempotent(InMemoryBackend())
    async def create_order() -> Any:
        raise KeyError("tea")

    async with connect(app) as client:
        tries = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in tries] == [404, 404]


@pytest.mark.skipif(
    "fastapi_inner_astack" not in inspect.getsource(fastapi.routing),
    reason="this FastAPI closes dependencies with the request, and lets nobody else do it",
)
async def test_a_dependency_stays_open_under_a_handler_whose_request_was_cancelled(
    connect: Any,
) -> None:
    log: list[str] = []
    began, go, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def session() -> AsyncIterator[str]:
        yield "s"
        log.append("closed")
        closed.set()

    app = FastAPI()

    @app.post("/orders")
    @idempotent(InMemoryBackend(), wait_timeout=20)
    async def create_order(session: str = Depends(session)) -> Any:
        log.append("began")
        began.set()
        await go.wait()
        log.append("ended")
        return {"ok": True}

    async with connect(app) as client:
        await _leave(client, began)
        assert log == ["began"]
        go.set()
        await asyncio.wait_for(closed.wait(), 20)
        assert log == ["began", "ended", "closed"]
        again = await client.post("/orders", headers=KEY)
    assert (again.status_code, again.headers["x-idempotency-status"]) == (200, "hit")


async def _leave(client: Any, began: asyncio.Event) -> None:
    """Sends a request, and gives it up once its handler has begun."""
    leaving = asyncio.create_task(client.post("/orders", headers=KEY))
    await asyncio.wait_for(began.wait(), 60)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_background_tasks_run_once_and_after_the_answer(connect: Any) -> None:
    log: list[str] = []
    app = FastAPI()
    backend = InMemoryBackend()

    @app.post("/injected")
    @idempotent(backend)
    async def injected(tasks: BackgroundTasks) -> Any:
        tasks.add_task(log.append, "mail")
        log.append("handler")
        return {"ok": True}

    @app.post("/returned")
    @idempotent(backend)
    async def returned() -> Any:
        tasks = BackgroundTasks()
        tasks.add_task(log.append, "mail")
        log.append("handler")
        return JSONResponse({"ok": True}, background=tasks)

    async with connect(app) as client:
        for path in ("/injected", "/returned"):
            for _ in range(3):
                assert (await client.post(path, headers=KEY)).status_code == 200
            assert log == ["handler", "mail"]
            log.clear()


async def test_background_tasks_run_though_the_client_left(connect: Any) -> None:
    began, go, mailed = asyncio.Event(), asyncio.Event(), asyncio.Event()
    app = FastAPI()

    async def mail() -> None:
        mailed.set()

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    async def create_order(tasks: BackgroundTasks) -> Any:
        tasks.add_task(mail)
        began.set()
        await go.wait()
        return {"ok": True}

    async with connect(app) as client:
        await _leave(client, began)
        go.set()
        await asyncio.wait_for(mailed.wait(), 20)


async def test_the_response_parameter_sets_headers_and_status(connect: Any) -> None:
    def dependency(response: Response) -> None:
        response.headers["X-From"] = "dependency"

    app = FastAPI()

    @app.post("/orders", dependencies=[Depends(dependency)])
    @idempotent(InMemoryBackend())
    async def create_order(response: Response) -> Any:
        response.status_code = 202
        response.headers["X-By"] = "handler"
        response.set_cookie("a", "1")
        return {"ok": True}

    async with connect(app) as client:
        first, again = [await client.post("/orders", headers=KEY) for _ in range(2)]
    for answer in (first, again):
        assert answer.status_code == 202
        assert answer.headers["x-from"] == "dependency"
        assert answer.headers.get_list("x-by") == ["handler"]
    assert "set-cookie" in first.headers
    assert "set-cookie" not in again.headers


async def test_routers_and_mounted_applications_keep_their_keys_apart(connect: Any) -> None:
    backend = InMemoryBackend()
    router, inner, app = APIRouter(prefix="/v1"), FastAPI(), FastAPI()

    @router.post("/orders")
    @inner.post("/orders")
    @idempotent(backend)
    async def create_order(request: Request) -> Any:
        return {"path": request.scope["root_path"] + request.scope["path"], "n": next(numbers)}

    numbers = iter(range(9))
    app.include_router(router)
    app.include_router(router, prefix="/again")
    app.mount("/inner", inner)
    seen = []
    async with connect(app) as client:
        for path in ("/v1/orders", "/again/v1/orders", "/inner/orders"):
            tries = [await client.post(path, headers=KEY) for _ in range(2)]
            assert tries[0].json() == tries[1].json()
            seen.append(tries[0].json()["n"])
    assert seen == [0, 1, 2]


async def test_one_route_with_several_methods_is_several_operations(connect: Any) -> None:
    app = FastAPI()
    numbers = iter(range(9))

    @app.api_route("/orders", methods=["POST", "PUT", "PATCH", "DELETE"])
    @idempotent(InMemoryBackend())
    async def change(request: Request) -> Any:
        return {"method": request.method, "n": next(numbers)}

    async with connect(app) as client:
        for number, method in enumerate(("POST", "PUT", "PATCH", "DELETE")):
            tries = [await client.request(method, "/orders", headers=KEY) for _ in range(2)]
            assert [answer.json() for answer in tries] == [{"method": method, "n": number}] * 2


async def test_objects_methods_and_partials_are_handlers(connect: Any) -> None:
    class Handler:
        def __init__(self) -> None:
            self.calls = 0

        async def __call__(self, order: Order) -> dict[str, Any]:
            self.calls += 1
            return {"by": "object", **order.model_dump()}

        def method(self, order: Order) -> dict[str, Any]:
            self.calls += 1
            return {"by": "method", **order.model_dump()}

    async def with_shop(shop: str, order: Order) -> dict[str, Any]:
        handler.calls += 1
        return {"by": shop, **order.model_dump()}

    handler = Handler()
    app, backend = FastAPI(), InMemoryBackend()
    handlers = {
        "object": handler,
        "method": handler.method,
        "partial": functools.partial(with_shop, "partial"),
    }
    for name, function in handlers.items():
        app.post(f"/{name}")(idempotent(backend)(function))
    async with connect(app) as client:
        for name in handlers:
            tries = [await client.post(f"/{name}", headers=KEY, json={}) for _ in range(2)]
            expected = {"by": name, "item": "tea", "count": 1}
            assert [answer.json() for answer in tries] == [expected] * 2
    assert handler.calls == len(handlers)


def test_a_generator_is_refused_at_decoration() -> None:
    def stream() -> Iterator[bytes]:
        yield b""

    with pytest.raises(TypeError, match="stream"):
        idempotent(InMemoryBackend())(stream)


async def test_starlette_alone_is_enough(connect: Any) -> None:
    calls: list[str] = []

    @idempotent(InMemoryBackend())
    async def create_order(request: Request) -> Response:
        calls.append(request.url.path)
        return PlainTextResponse(await request.body())

    @idempotent(InMemoryBackend())
    def create_in_thread(request: Request) -> Response:
        calls.append(request.url.path)
        return PlainTextResponse("done")

    routes = [
        Route("/orders", create_order, methods=["POST"]),
        Route("/thread", create_in_thread, methods=["POST"]),
    ]
    async with connect(Starlette(routes=routes)) as client:
        for path in ("/orders", "/thread"):
            tries = [await client.post(path, headers=KEY, content=b"done") for _ in range(2)]
            assert [answer.text for answer in tries] == ["done"] * 2
            assert tries[1].headers["x-idempotency-status"] == "hit"
            assert (await client.post(path)).status_code == 400
    assert calls == ["/orders", "/thread"]


# Parameters.


async def test_an_optional_key_may_be_missing(connect: Any) -> None:
    app = FastAPI()
    numbers = iter(range(9))

    @app.post("/orders")
    @idempotent(InMemoryBackend(), required=False)
    async def create_order() -> Any:
        return {"n": next(numbers), "key": bool(current_execution())}

    async with connect(app) as client:
        without = [await client.post("/orders") for _ in range(2)]
        with_key = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert [answer.json() for answer in without] == [{"n": n, "key": False} for n in (0, 1)]
    assert not OURS & {name for name, _ in without[0].headers.raw}
    assert [answer.json() for answer in with_key] == [{"n": 2, "key": True}] * 2


async def test_chosen_headers_are_part_of_the_signature(connect: Any) -> None:
    app, backend = FastAPI(), InMemoryBackend()

    @app.post("/version")
    @idempotent(backend, signature_headers=["X-Api-Version"])
    async def version() -> Any:
        return {}

    @app.post("/all")
    @idempotent(backend, signature_headers="all")
    async def everything() -> Any:
        return {}

    @app.post("/off")
    @idempotent(backend, validate_signature=False)
    async def off() -> Any:
        return {}

    async with connect(app) as client:

        async def status(path: str, content: bytes = b"", **headers: str) -> int:
            answer = await client.post(path, headers={**KEY, **headers}, content=content)
            return int(answer.status_code)

        assert await status("/version", **{"X-Api-Version": "1", "X-Other": "1"}) == 200
        assert await status("/version", **{"X-Api-Version": "1", "X-Other": "2"}) == 200
        assert await status("/version", **{"X-Api-Version": "2", "X-Other": "2"}) == 422
        assert await status("/all", **{"X-Other": "1"}) == 200
        assert await status("/all", **{"X-Other": "1"}) == 200
        assert await status("/all", **{"X-Other": "2"}) == 422
        assert await status("/off", b"one") == 200
        assert await status("/off", b"two") == 200


@pytest.mark.parametrize("key", ['"k"', "k", '"k";a=1'])
async def test_a_quoted_key_is_the_bare_one(connect: Any, key: str) -> None:
    app = FastAPI()

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    async def create_order() -> Any:
        execution = current_execution()
        assert execution is not None
        return {"key": execution.key}

    async with connect(app) as client:
        first = await client.post("/orders", headers=KEY)
        again = await client.post("/orders", headers={"Idempotency-Key": key})
    assert first.json() == again.json() == {"key": "k"}
    assert again.headers["x-idempotency-status"] == "hit"


@pytest.mark.parametrize("key", ["a,b", "k" * 256, '"open', "a\tb", "caf\u00e9"])
async def test_a_malformed_key_is_refused(connect: Any, key: str) -> None:
    app = FastAPI()

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    async def create_order() -> Any:
        raise AssertionError

    async with connect(app) as client:
        lines = [(b"Idempotency-Key", key.encode("latin-1"))]
        answer = await client.post("/orders", headers=lines)
        two = await client.post("/orders", headers=[("Idempotency-Key", "a")] * 2)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-key")
    assert (two.status_code, two.json()["code"]) == (400, "invalid-key")


async def test_an_applications_own_check_of_keys_is_asked(connect: Any) -> None:
    app = FastAPI()

    @app.post("/orders")
    @idempotent(InMemoryBackend(), accepts=lambda key: key.startswith("ord-"))
    async def create_order() -> Any:
        return {}

    async with connect(app) as client:
        good = await client.post("/orders", headers={"Idempotency-Key": "ord-1"})
        bad = await client.post("/orders", headers=KEY)
    assert (good.status_code, bad.status_code) == (200, 400)
    assert bad.json()["code"] == "invalid-key"


async def test_scopes_keep_tenants_apart(connect: Any) -> None:
    async def by_tenant(request: Request) -> str | None:
        return request.headers.get("x-tenant")

    app, backend = FastAPI(), InMemoryBackend()
    numbers = iter(range(99))
    scopes = {
        "function": lambda request: request.headers.get("x-tenant"),
        "coroutine": by_tenant,
        "header": {"header": "X-Tenant"},
    }
    for name, scope in scopes.items():

        @app.post(f"/{name}")
        @idempotent(backend, scope=scope)
        async def create_order() -> Any:
            return {"n": next(numbers)}

    async with connect(app) as client:
        for name in scopes:
            alice, bob, again = [
                await client.post(f"/{name}", headers={**KEY, "X-Tenant": tenant})
                for tenant in ("alice", "bob", "alice")
            ]
            nobody = await client.post(f"/{name}", headers=KEY)
            assert alice.json() == again.json() != bob.json(), name
            assert nobody.status_code in {400, 401}, name
            assert nobody.json()["code"] == "scope-unresolved", name


async def test_by_default_a_key_is_bound_to_its_authorization(connect: Any) -> None:
    app, backend = FastAPI(), InMemoryBackend()

    @app.post("/bound")
    @idempotent(backend)
    async def bound() -> Any:
        return {}

    @app.post("/shared")
    @idempotent(backend, scope="shared")
    async def shared() -> Any:
        return {}

    async with connect(app) as client:
        for path, expected in (("/bound", 422), ("/shared", 200)):
            await client.post(path, headers={**KEY, "Authorization": "Bearer 1"})
            other = await client.post(path, headers={**KEY, "Authorization": "Bearer 2"})
            none = await client.post(path, headers=KEY)
            assert (other.status_code, none.status_code) == (expected, expected)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((object(),), {}),
        (("redis://localhost",), {}),
        ((), {"key_ttl": 0}),
        ((), {"key_ttl": -1}),
        ((), {"key_ttl": "60"}),
        ((), {"wait_timeout": -0.1}),
        ((), {"profile": "nonsense"}),
        ((), {"profile": "payments"}),
        ((), {"policy": {"leese_ms": 1}}),
        ((), {"policy": {"lease_ms": "soon"}}),
        ((), {"policy": ["lease_ms"]}),
        ((), {"policy": {"fingerprint": object()}}),
        ((), {"signature_headers": "some"}),
        ((), {"scope": "nobody"}),
    ],
)
def test_a_bad_parameter_is_refused_at_decoration(
    arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises((TypeError, ValueError)) as refused:
        idempotent(*(arguments or (InMemoryBackend(),)), **options)
    assert str(refused.value)


# The execution, as the handler sees it.


async def test_a_handler_sees_its_execution(connect: Any) -> None:
    app = FastAPI()

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    def create_order() -> Any:
        execution = current_execution()
        assert execution is not None
        assert not execution.is_lost
        assert "secret-key" not in repr(execution)
        return {
            "key": execution.key,
            "attempt": execution.attempt,
            "token": execution.token,
            "fence": execution.fence,
            "charge": execution.derive("charge"),
            "again": execution.derive("charge"),
            "mail": execution.derive("mail"),
        }

    assert current_execution() is None
    async with connect(app) as client:
        key = {"Idempotency-Key": '"secret-key"'}
        seen = (await client.post("/orders", headers=key)).json()
        other = (await client.post("/orders", headers=KEY)).json()
    assert current_execution() is None
    assert (seen["key"], seen["attempt"]) == ("secret-key", 1)
    assert seen["charge"] == seen["again"] != seen["mail"]
    assert seen["charge"] != other["charge"]
    assert seen["token"] != other["token"]
    assert seen["fence"] >= 0


@pytest.mark.parametrize("through", ["header", "execution"])
@pytest.mark.parametrize(
    ("outcome", "second", "calls_expected"),
    [("store", 503, 1), ("release", 503, 2), ("unknown", 409, 1)],
)
async def test_a_handler_directs_its_outcome(
    connect: Any, through: str, outcome: Any, second: int, calls_expected: int
) -> None:
    calls = 0
    app = FastAPI()

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    async def create_order(response: Response) -> Any:
        nonlocal calls
        calls += 1
        response.status_code = 503
        if through == "header":
            response.headers["Idempotency-Outcome"] = outcome
        else:
            execution = current_execution()
            assert execution is not None
            execution.direct(outcome)
        return {"n": 1}

    async with connect(app) as client:
        answers = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [503, second]
    assert calls == calls_expected
    assert all("idempotency-outcome" not in answer.headers for answer in answers)
    stored = "idempotency-stored" not in answers[0].headers
    assert stored == (outcome == "store")


async def test_an_unknown_direction_is_refused(connect: Any) -> None:
    app = FastAPI()

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    async def create_order() -> Any:
        execution = current_execution()
        assert execution is not None
        with pytest.raises(ValueError, match="store, release or unknown"):
            execution.direct("keep")  # type: ignore[arg-type]
        return {}

    async with connect(app) as client:
        assert (await client.post("/orders", headers=KEY)).status_code == 200


@pytest.mark.parametrize("knows", ["nothing", "it did not happen", "it happened"])
async def test_the_probe_decides_about_an_orphan(connect: Any, knows: str) -> None:
    """The orphan is an execution of an event loop that ended under it."""
    asked: list[tuple[str, int]] = []
    backend = InMemoryBackend()
    calls = 0

    async def probe(orphan: Any) -> Any:
        asked.append((orphan.key, orphan.attempt))
        if knows == "it happened":
            return JSONResponse({"n": "found"}, 201)
        return None if knows == "nothing" else False

    app = FastAPI()

    @app.post("/orders")
    @idempotent(backend, probe=probe, policy={"on_orphan": "probe", "lease_ms": 200})
    async def create_order() -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            app.state.began.set()
            await asyncio.Event().wait()
        execution = current_execution()
        assert execution is not None
        return JSONResponse({"n": calls, "attempt": execution.attempt}, 201)

    async def vanish() -> None:
        began = app.state.began = asyncio.Event()
        async with connect(app) as client:
            sending = asyncio.create_task(client.post("/orders", headers=KEY))
            await began.wait()
            sending.cancel()

    await asyncio.to_thread(asyncio.run, vanish())
    async with connect(app) as client:
        answer = await client.post("/orders", headers=KEY)
        for _ in range(100):
            if answer.status_code != 409 or answer.json()["code"] != "in-progress":
                break
            await asyncio.sleep(0.05)
            answer = await client.post("/orders", headers=KEY)
    assert asked[0] == ("k", 1)
    if knows == "nothing":
        assert (answer.status_code, answer.json()["code"], calls) == (409, "outcome-unknown", 1)
    elif knows == "it happened":
        assert (answer.status_code, answer.json(), calls) == (201, {"n": "found"}, 1)
    else:
        assert (answer.status_code, answer.json()) == (201, {"n": 2, "attempt": 2})
