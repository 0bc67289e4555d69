"""Extensions of ASGI, under a key and without one."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response
from idemptx import IdempotencyMiddleware, idempotent
from idemptx.backend import InMemoryBackend
from protected import order_scope

pytestmark = pytest.mark.anyio

PARTS_ELSEWHERE = [
    "http.response.pathsend",
    "http.response.trailers",
    "http.response.zerocopysend",
]


class Describing(Response):
    """A response that does what the server is able to, as those of Starlette do."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        extensions = scope["extensions"]
        if "http.response.debug" in extensions:
            await send({"type": "http.response.debug", "info": {"template": "order.html"}})
        if "http.response.trailers" not in extensions:
            self.headers["X-Trailers"] = "none"
        self.body = " ".join(sorted(extensions)).encode()
        del self.headers["content-length"]
        await super().__call__(scope, receive, send)


@pytest.fixture(params=["decorator", "middleware"])
def app(request: Any) -> FastAPI:
    async def create_order(request: Request) -> Response:
        return Describing()

    app = FastAPI()
    if request.param == "decorator":
        app.post("/orders")(idempotent(InMemoryBackend(), required=False)(create_order))
        return app
    app.post("/orders")(create_order)
    app.add_middleware(IdempotencyMiddleware, storage_backend=InMemoryBackend())
    return app


async def called(app: Any, *, keyed: bool) -> list[Any]:
    scope = order_scope()
    names = ["http.response.debug", "http.response.early_hint", *PARTS_ELSEWHERE]
    scope["extensions"] = {name: {} for name in names}
    if not keyed:
        scope["headers"] = scope["headers"][1:]
    messages: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    await app(scope, receive, send)
    return messages


async def test_no_part_of_a_stored_response_goes_by_another_way(app: FastAPI) -> None:
    plain = await called(app, keyed=False)
    assert all(name in plain[-1]["body"].decode() for name in PARTS_ELSEWHERE)
    first, again = [await called(app, keyed=True) for _ in range(2)]
    for messages in (first, again):
        assert messages[-1]["body"] == b"http.response.debug http.response.early_hint"
        assert (b"x-trailers", b"none") in messages[-2]["headers"]


async def test_layers_outside_see_what_routing_notes_in_the_scope(app: FastAPI) -> None:
    scopes: list[Any] = []

    async def outside(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await app(scope, receive, send)

    await called(outside, keyed=True)
    assert scopes[0]["route"].path == "/orders"
    assert all(name in scopes[0]["extensions"] for name in PARTS_ELSEWHERE)


async def test_a_test_client_is_told_of_the_template_of_an_execution(app: FastAPI) -> None:
    debug = {"type": "http.response.debug", "info": {"template": "order.html"}}
    plain = await called(app, keyed=False)
    first, again = [await called(app, keyed=True) for _ in range(2)]
    assert plain[0] == first[0] == debug
    assert debug not in again, "no template was rendered"
