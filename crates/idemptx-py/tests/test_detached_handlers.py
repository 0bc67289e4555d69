"""Handlers in a separate task: what settles when, and what survives a client that leaves."""
# Annotations are read at run time by FastAPI, which sees no names of enclosing functions:
# ruff: noqa: TC003

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import logging
import sys
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import fastapi.routing
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from idemptx import IdempotencyMiddleware, drain, idempotent
from idemptx._engines import engines_of
from idemptx._idemptx import RELEASE
from idemptx.backend import InMemoryBackend
from protected import KEY, order_scope, protected
from starlette.applications import Starlette
from starlette.routing import Route

pytestmark = pytest.mark.anyio

# FastAPI ends some dependencies before the response: those of this scope, or (before 0.118) all.
SHOWS_STACKS = "fastapi_inner_astack" in inspect.getsource(fastapi.routing)
HAS_SCOPES = "scope" in inspect.signature(Depends).parameters
ends_before_response = pytest.mark.skipif(
    SHOWS_STACKS and not HAS_SCOPES, reason="this FastAPI ends dependencies after the response"
)


def before_response(dependency: Any) -> Any:
    return Depends(dependency, scope="function") if HAS_SCOPES else Depends(dependency)


def a_session_that_fails_once(log: list[str]) -> Any:
    async def session() -> AsyncIterator[None]:
        yield
        if "failed" not in log:
            log.append("failed")
            raise RuntimeError("the commit failed")
        log.append("committed")

    return session


@ends_before_response
@pytest.mark.parametrize("streams", [False, True])
async def test_a_dependency_that_fails_before_the_response_leaves_nothing_to_replay(
    connect: Any, streams: bool
) -> None:
    log: list[str] = []

    @protected(wait_timeout=20)
    async def app(
        session: None = before_response(a_session_that_fails_once(log)),
    ) -> Any:
        log.append("handler")
        return StreamingResponse(iter([b"a", b"b"])) if streams else {"ok": True}

    async with connect(app) as client:
        tries = [await client.post("/orders", headers=KEY) for _ in range(3)]
    assert [answer.status_code for answer in tries] == [500, 200, 200]
    assert [it.headers.get("x-idempotency-status") for it in tries[1:]] == ["new", "hit"]
    assert log[:4] == ["handler", "failed", "handler", "committed"]
    assert log.count("handler") == 2


@ends_before_response
async def test_a_live_body_ends_where_a_dependency_fails_before_it(connect: Any) -> None:
    log: list[str] = []

    async def events() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"data: x\n\n"

    @protected()
    async def app(
        session: None = before_response(a_session_that_fails_once(log)),
    ) -> Any:
        return StreamingResponse(events(), media_type="text/event-stream")

    async with connect(app) as client:
        assert (await client.post("/orders", headers=KEY)).status_code == 500
    assert await drain(20)


async def test_a_response_that_another_decorator_replaces_is_still_stored(connect: Any) -> None:
    handled = 0
    app = FastAPI()

    def wrapped(endpoint: Any) -> Any:
        @functools.wraps(endpoint)
        async def call(*args: Any, **kwargs: Any) -> Any:
            await endpoint(*args, **kwargs)
            return JSONResponse({"wrapped": True})

        call.__signature__ = inspect.signature(endpoint)  # type: ignore[attr-defined]
        return call

    @app.post("/orders")
    @wrapped
    @idempotent(InMemoryBackend())
    async def create_order() -> Any:
        nonlocal handled
        handled += 1
        return {"ok": True}

    async with connect(app) as client:
        for _ in range(2):
            assert (await client.post("/orders", headers=KEY)).json() == {"wrapped": True}
    assert handled == 1


@pytest.mark.parametrize("streams", [False, True])
async def test_starlettes_routes_store_a_response_that_is_replaced(
    connect: Any, streams: bool
) -> None:
    """Nothing can fail after their handler; what it returned is never sent."""
    handled, replaced = 0, list[int]()

    async def events() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"data: x\n\n"

    @idempotent(InMemoryBackend(), policy={"on_not_replayable": "reexecute"})
    async def create_order(request: Request) -> Any:
        nonlocal handled
        handled += 1
        if streams:
            return StreamingResponse(events(), media_type="text/event-stream")
        return JSONResponse({"ok": True})

    async def wrapped(request: Request) -> Any:
        replaced.append((await create_order(request)).status_code)
        return JSONResponse({"wrapped": True})

    app = Starlette(routes=[Route("/orders", wrapped, methods=["POST"])])
    async with connect(app) as client:
        for _ in range(2):
            assert (await client.post("/orders", headers=KEY)).json() == {"wrapped": True}
    assert handled == (2 if streams else 1)
    assert replaced == [200, 200]
    gc.collect()
    assert await drain(20)


async def test_what_changes_a_response_around_the_route_changes_a_replay_alike(
    connect: Any,
) -> None:
    class Redacting(APIRoute):
        def get_route_handler(self) -> Any:
            handle = super().get_route_handler()

            async def redacting(request: Request) -> Any:
                response = await handle(request)
                response.body = response.body.replace(b"4711", b"****")
                response.status_code = 202
                return response

            return redacting

    app = FastAPI()
    app.router.route_class = Redacting

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    async def create_order() -> Any:
        return {"card": "4711"}

    async with connect(app) as client:
        answers = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert [(it.status_code, it.json()) for it in answers] == [(202, {"card": "****"})] * 2
    assert answers[1].headers["x-idempotency-status"] == "hit"


@ends_before_response
async def test_a_request_cancelled_while_its_failure_is_stored_frees_its_key(
    connect: Any, monkeypatch: Any
) -> None:
    backend, releasing, go = InMemoryBackend(), asyncio.Event(), asyncio.Event()
    log: list[str] = []

    @protected(backend)
    async def app(session: None = before_response(a_session_that_fails_once(log))) -> Any:
        return {"ok": True}

    store = engines_of(backend).here().store
    perform = store.perform

    async def later(step: Any) -> None:
        releasing.set()
        await go.wait()
        perform(step)

    def stalled(step: Any) -> Any:
        return later(step) if step.kind == RELEASE else perform(step)

    monkeypatch.setattr(store, "perform", stalled)
    async with connect(app) as client:
        await leave(client, releasing)
        go.set()
        assert await drain(20)
        again = await client.post("/orders", headers=KEY)
    assert (again.status_code, again.headers["x-idempotency-status"]) == (200, "new")


@ends_before_response
async def test_a_request_cancelled_in_a_commit_leaves_nothing_to_replay(connect: Any) -> None:
    committing, handled = asyncio.Event(), 0

    async def session() -> AsyncIterator[None]:
        yield
        if handled == 1:
            committing.set()
            await asyncio.Event().wait()

    @protected(wait_timeout=20)
    async def app(session: None = before_response(session)) -> Any:
        nonlocal handled
        handled += 1
        return {"ok": True}

    async with connect(app) as client:
        await leave(client, committing)
        again = await client.post("/orders", headers=KEY)
    assert (again.status_code, again.headers["x-idempotency-status"]) == (200, "new")
    assert handled == 2


@pytest.mark.skipif(not SHOWS_STACKS, reason="this FastAPI closes dependencies with the request")
async def test_a_dependency_that_fails_after_its_client_left_is_logged(
    connect: Any, caplog: Any
) -> None:
    began, go = asyncio.Event(), asyncio.Event()

    async def session() -> AsyncIterator[None]:
        yield
        raise RuntimeError("the connection could not be given back")

    @protected()
    async def app(session: None = Depends(session)) -> Any:
        began.set()
        await go.wait()
        return {"ok": True}

    async with connect(app) as client:
        with caplog.at_level(logging.ERROR, "idemptx"):
            await leave(client, began)
            go.set()
            assert await drain(20)
    assert "could not be given back" in caplog.text


async def test_context_variables_of_the_handler_reach_its_caller(connect: Any) -> None:
    user: ContextVar[str] = ContextVar("user", default="none")
    seen: list[str] = []

    async def session() -> AsyncIterator[None]:
        user.set("dependency")
        yield
        seen.append(user.get())

    @protected()
    async def app(session: None = Depends(session)) -> Any:
        seen.append(user.get())
        user.set("handler")
        return {"ok": True}

    async with connect(app) as client:
        await client.post("/orders", headers=KEY)
    assert seen == ["dependency", "handler"]


async def test_without_detaching_dependencies_and_handler_share_a_task(connect: Any) -> None:
    tasks: list[Any] = []

    async def session() -> None:
        tasks.append(asyncio.current_task())

    @protected(detach=False)
    async def app(session: None = Depends(session)) -> Any:
        tasks.append(asyncio.current_task())
        return {"ok": True}

    async with connect(app) as client:
        tries = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert tasks[0] is tasks[1]
    assert [it.headers["x-idempotency-status"] for it in tries] == ["new", "hit"]


async def test_without_detaching_a_cancelled_handler_frees_its_key(connect: Any) -> None:
    began, handled = asyncio.Event(), 0

    @protected(detach=False, wait_timeout=20)
    async def app() -> Any:
        nonlocal handled
        handled += 1
        began.set()
        if handled == 1:
            await asyncio.Event().wait()
        return {"ok": True}

    async with connect(app) as client:
        await leave(client, began)
        again = await client.post("/orders", headers=KEY)
    assert (again.status_code, again.headers["x-idempotency-status"]) == (200, "new")
    assert await drain(20)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tasks do not say that they are cancelled")
@pytest.mark.parametrize("detach", [True, False])
async def test_a_task_cancelled_elsewhere_is_an_exception_of_the_handler(
    connect: Any, detach: bool
) -> None:
    handled = 0

    @protected(detach=detach)
    async def app() -> Any:
        nonlocal handled
        handled += 1
        if handled == 1:
            other = asyncio.ensure_future(asyncio.Event().wait())
            asyncio.get_running_loop().call_soon(other.cancel)
            await other
        return {"ok": True}

    async with connect(app) as client:
        tries = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert [it.status_code for it in tries] == [500, 200]
    assert await drain(20)


@pytest.mark.parametrize("fails_at", ["http.response.start", "http.response.body"])
async def test_a_body_whose_client_cannot_be_reached_ends(fails_at: str) -> None:
    app = FastAPI()

    async def events() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"data: x\n\n"

    @app.post("/orders")
    async def create_order() -> Any:
        return StreamingResponse(events(), media_type="text/event-stream")

    protected = IdempotencyMiddleware(app, InMemoryBackend())

    requests = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        return requests.pop() if requests else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == fails_at:
            raise OSError("the connection was reset")

    with contextlib.suppress(OSError):
        await protected(order_scope(), receive, send)
    assert await drain(20)


async def test_background_tasks_of_a_dependency_run_once(connect: Any) -> None:
    mails: list[str] = []

    async def mailing(tasks: BackgroundTasks) -> None:
        tasks.add_task(mails.append, "mail")

    @protected()
    async def app(mailing: None = Depends(mailing)) -> Any:
        return {"ok": True}

    async with connect(app) as client:
        for _ in range(3):
            assert (await client.post("/orders", headers=KEY)).status_code == 200
    assert mails == ["mail"]


async def test_background_tasks_of_a_dependency_run_though_the_client_left(connect: Any) -> None:
    began, go, mailed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def mail() -> None:
        mailed.set()

    async def mailing(tasks: BackgroundTasks) -> None:
        tasks.add_task(mail)

    @protected()
    async def app(mailing: None = Depends(mailing)) -> Any:
        began.set()
        await go.wait()
        return {"ok": True}

    async with connect(app) as client:
        await leave(client, began)
        go.set()
        await asyncio.wait_for(mailed.wait(), 20)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="this Python has no eager tasks")
async def test_eager_tasks_leave_nothing_to_drain(connect: Any) -> None:
    @protected()
    async def app() -> Any:
        return {"ok": True}

    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    try:
        async with connect(app) as client:
            tries = [await client.post("/orders", headers=KEY) for _ in range(2)]
        assert await asyncio.wait_for(drain(20), 40)
    finally:
        loop.set_task_factory(None)
    assert [it.headers["x-idempotency-status"] for it in tries] == ["new", "hit"]


async def leave(client: Any, began: asyncio.Event) -> None:
    """Sends a request, and gives it up once its handler has come to a point."""
    leaving = asyncio.create_task(client.post("/orders", headers=KEY))
    await asyncio.wait_for(began.wait(), 60)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving


@pytest.mark.parametrize("layer", ["decorator", "middleware"])
async def test_a_waiter_whose_client_left_makes_room_for_another(connect: Any, layer: str) -> None:
    began, go = asyncio.Event(), asyncio.Event()
    policy = {"waiters_max": 1, "wait_ms": 30_000}
    app: Any = FastAPI()

    async def create_order() -> Any:
        began.set()
        await go.wait()
        return {"ok": True}

    backend = InMemoryBackend()
    engine = engines_of(backend).here()
    if layer == "decorator":
        app.post("/orders")(idempotent(backend, policy=policy)(create_order))
    else:
        app.post("/orders")(create_order)
        app = IdempotencyMiddleware(app, backend, policy=policy)
    left = asyncio.Event()
    messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        for message in messages:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        pass

    async with connect(app) as client:
        first = asyncio.create_task(client.post("/orders", headers=KEY))
        await asyncio.wait_for(began.wait(), 30)
        leaving = asyncio.create_task(app(order_scope(), receive, send))
        while not engine.coordinator.waiting:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0)
        assert (await client.post("/orders", headers=KEY)).status_code == 409
        left.set()
        await asyncio.wait_for(leaving, 10)
        waiting = asyncio.create_task(client.post("/orders", headers=KEY))
        while not engine.coordinator.waiting:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0)
        go.set()
        assert ((await first).status_code, (await waiting).status_code) == (200, 200)
