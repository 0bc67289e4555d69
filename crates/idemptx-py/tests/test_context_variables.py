"""Context variables that an application sets, seen by the layers around it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from idemptx import IdempotencyMiddleware
from idemptx.backend import InMemoryBackend
from protocol import KEY

pytestmark = pytest.mark.anyio

USER: ContextVar[str] = ContextVar("user", default="none")
SPAN: ContextVar[str] = ContextVar("span")
STATUS: ContextVar[int] = ContextVar("status")


class Observing:
    """A layer outside, such as one that logs requests."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.seen: list[tuple[str, str, str | None]] = []
        self.statuses: list[int] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_seen(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.note("head")
                STATUS.set(message["status"])
            await send(message)

        STATUS.set(0)
        await self.app(scope, receive, send_seen)
        self.note("end")
        self.statuses.append(STATUS.get())

    def note(self, when: str) -> None:
        self.seen.append((when, USER.get(), SPAN.get(None)))


class Spanning:
    """A layer inside that sets a variable for as long as a request takes."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        token = SPAN.set("inside")
        try:
            await self.app(scope, receive, send)
        finally:
            SPAN.reset(token)


async def authenticate() -> None:
    USER.set("dependency")


@pytest.mark.parametrize("path", ["/orders", "/refused", "/streamed"])
@pytest.mark.parametrize("headers", [{}, KEY], ids=["no key", "key"])
async def test_layers_outside_see_the_same_with_and_without_a_key(
    connect: Any, path: str, headers: dict[str, str]
) -> None:
    app = FastAPI(dependencies=[Depends(authenticate)])

    @app.post("/orders")
    async def create_order() -> None:
        USER.set("handler")

    @app.post("/refused")
    async def refuse() -> None:
        USER.set("handler")
        raise HTTPException(409)

    @app.post("/streamed")
    async def stream() -> StreamingResponse:
        async def events() -> Any:
            yield "data: 1\n\n"

        USER.set("handler")
        return StreamingResponse(events(), media_type="text/event-stream")

    app.add_middleware(Spanning)
    app.add_middleware(IdempotencyMiddleware, storage_backend=InMemoryBackend())
    outside = Observing(app)
    async with connect(outside) as client:
        response = await client.post(path, headers=headers)
    assert response.status_code in (200, 409)
    assert outside.seen == [("head", "handler", "inside"), ("end", "handler", None)]
    if path != "/streamed":  # Starlette sends such a response in another task.
        assert outside.statuses == [response.status_code], "its own variables are not touched"
