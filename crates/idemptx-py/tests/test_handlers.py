"""Decorated handlers may take everything that they might, and depend on it."""
# Annotations are read at run time by FastAPI, which sees no names of enclosing functions:
# ruff: noqa: TC003

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from apps import present_annotations
from fastapi import (
    APIRouter,
    FastAPI,
    File,
    Form,
    Header,
    Request,
    Response,
    UploadFile,
)
from fastapi.responses import (
    PlainTextResponse,
)
from idemptx import idempotent
from idemptx.backend import InMemoryBackend
from protected import KEY, protected
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Route

pytestmark = pytest.mark.anyio


class Order(BaseModel):
    item: str = "tea"
    count: int = 1


class Receipt(BaseModel):
    total: int
    note: str | None = None
    secret: str = "hidden"


async def test_a_handler_needs_no_request_parameter(connect: Any) -> None:
    @protected(path="/orders/{number}")
    async def app(
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
    plain_one, safe_one = (
        app.openapi()["paths"]["/orders/{number}"]["post"] for app in (plain, safe)
    )
    for name in ("parameters", "requestBody", "summary", "operationId"):
        own = [it for it in safe_one[name] if name != "parameters" or it["in"] != "header"]
        assert own == list(plain_one[name])
    assert safe_one["responses"]["200"]["content"] == plain_one["responses"]["200"]["content"]


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
    @protected(path="/form")
    async def app(amount: Annotated[int, Form()], note: Annotated[str, Form()] = "") -> Any:
        return {"amount": amount, "note": note}

    async with connect(app) as client:
        first = await client.post("/form", headers=KEY, data={"amount": 5, "note": "\u00e4"})
        again = await client.post("/form", headers=KEY, data={"amount": 5, "note": "\u00e4"})
        other = await client.post("/form", headers=KEY, data={"amount": 6, "note": "\u00e4"})
    assert first.json() == again.json() == {"amount": 5, "note": "\u00e4"}
    assert (again.headers["x-idempotency-status"], other.status_code) == ("hit", 422)


async def test_uploads_are_compared_by_their_contents_whatever_the_boundary(connect: Any) -> None:
    @protected(path="/upload")
    async def app(file: Annotated[UploadFile, File()], note: Annotated[str, Form()]) -> Any:
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
    @protected(path="/binary")
    async def app(request: Request) -> Any:
        chunks = [chunk async for chunk in request.stream()]
        return Response(b"".join(chunks)[::-1])

    content = bytes(range(256))
    async with connect(app) as client:
        tries = [await client.post("/binary", headers=KEY, content=content) for _ in range(2)]
        other = await client.post("/binary", headers=KEY, content=content[1:])
    assert [answer.content for answer in tries] == [content[::-1]] * 2
    assert other.status_code == 422


# Routers, and other callables.


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


async def test_a_form_in_any_charset_is_compared(connect: Any) -> None:
    """A client may choose one in which text has half of a surrogate pair."""
    calls = 0

    @protected()
    async def app(note: Annotated[str, Form()]) -> Any:
        nonlocal calls
        calls += 1
        return {"characters": len(note)}

    headers = {**KEY, "Content-Type": "multipart/form-data; boundary=B; charset=unicode_escape"}
    body = b'--B\r\nContent-Disposition: form-data; name="note"\r\n\r\n\\ud800\r\n--B--\r\n'
    async with connect(app) as client:
        answers = [await client.post("/orders", content=body, headers=headers) for _ in range(2)]
        other = body.replace(b"d800", b"d801")
        answers.append(await client.post("/orders", content=other, headers=headers))
    assert [answer.status_code for answer in answers] == [200, 200, 422]
    assert calls == 1
