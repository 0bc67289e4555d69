"""Leases, loops and ends: what goes on beside requests, and what a handler may call."""
# Annotations are read at run time by FastAPI, which sees no names of enclosing functions:
# ruff: noqa: TC003

from __future__ import annotations

import asyncio
import datetime as dt
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import Response, StreamingResponse
from idemptx import IdempotencyMiddleware, current_execution, drain, idempotent
from idemptx._engines import engines_of
from idemptx._idemptx import EXECUTE, OK, STORE, UNAVAILABLE, MemoryStore, Rules
from idemptx._lease_renewer import LeaseRenewer
from idemptx._reports import _Limited
from idemptx.backend import InMemoryBackend, SqliteBackend
from protected import KEY, order_scope, protected
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

pytestmark = pytest.mark.anyio


class Holder:
    """A running handler, as far as its lease is concerned."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.exchange = executing()
        self.lost = threading.Event()

    def lose(self) -> None:
        self.lost.set()


def executing() -> Any:
    """An exchange whose handler runs under a lease of 0.3 seconds."""
    rules = Rules("draft", '{"lease_ms": 300}')
    exchange = rules.begin("POST", b"/orders", b"", [(b"idempotency-key", b"k")], None)
    claim = exchange.step() if exchange.end_body() == STORE else None
    assert claim is not None
    MemoryStore().perform(claim)
    assert exchange.done(claim) == EXECUTE
    return exchange


class Renewing:
    """A store that gives each renewal the next verdict, or is silent until it is let go on."""

    def __init__(self, *verdicts: int | Exception, is_silent: bool = False) -> None:
        self.renewed = threading.Event()
        self.go = threading.Event()
        self._verdicts = list(verdicts)
        self._is_silent = is_silent

    def renew(self, steps: Any) -> None:
        if self._is_silent:
            self.go.wait(30)
        verdict = self._verdicts.pop(0) if self._verdicts else OK
        if isinstance(verdict, Exception):
            raise verdict
        for step in steps:
            if verdict == OK:
                step.succeed()
            else:
                step.fail(verdict)
        self.renewed.set()


async def test_a_silent_store_holds_up_no_lease_of_another() -> None:
    renewer, silent, well = LeaseRenewer(), Renewing(is_silent=True), Renewing()
    first, second = Holder(silent), Holder(well)
    renewer.add(first)
    try:
        renewer.add(second)
        assert await asyncio.to_thread(well.renewed.wait, 10)
        well.renewed.clear()
        assert await asyncio.to_thread(well.renewed.wait, 10), "and goes on"
    finally:
        silent.go.set()
        renewer.remove(first)
        renewer.remove(second)


async def test_an_exception_in_one_renewal_ends_neither_it_nor_another() -> None:
    renewer = LeaseRenewer()
    raising, well = Renewing(OSError("unplugged"), UNAVAILABLE), Renewing()
    holders = [Holder(raising), Holder(well)]
    for holder in holders:
        renewer.add(holder)
    try:
        for store in (raising, well):
            assert await asyncio.to_thread(store.renewed.wait, 10)
            store.renewed.clear()
            assert await asyncio.to_thread(store.renewed.wait, 10)
        assert not any(holder.lost.is_set() for holder in holders)
    finally:
        for holder in holders:
            renewer.remove(holder)


async def test_leases_that_cannot_be_renewed_are_logged_at_a_limited_rate(
    monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr("idemptx._reports._Reports.renewals", _Limited())
    renewer, store = LeaseRenewer(), Renewing(*[UNAVAILABLE] * 1000)
    holders = [Holder(store) for _ in range(10)]
    for holder in holders:
        renewer.add(holder)
    try:
        for _ in range(3):
            assert await asyncio.to_thread(store.renewed.wait, 10)
            store.renewed.clear()
    finally:
        for holder in holders:
            renewer.remove(holder)
    assert caplog.text.count("a lease could not be renewed") == 1


async def test_closing_a_backend_waits_for_the_results_of_running_handlers(
    connect: Any, tmp_path: Any
) -> None:
    backend = SqliteBackend(tmp_path / "records.db")
    began, go, handled = asyncio.Event(), asyncio.Event(), 0

    @protected(backend)
    async def app() -> Any:
        nonlocal handled
        handled += 1
        began.set()
        await go.wait()
        return {"ok": True}

    async with connect(app) as client:
        running = asyncio.create_task(client.post("/orders", headers=KEY))
        await asyncio.wait_for(began.wait(), 30)
        closing = asyncio.create_task(backend.aclose())
        await asyncio.sleep(0.05)
        go.set()
        await asyncio.wait_for(closing, 30)
        assert (await running).status_code == 200
        again = await client.post("/orders", headers=KEY)
    assert (again.headers["x-idempotency-status"], handled) == ("hit", 1)
    await backend.aclose()


def test_a_loop_that_is_not_asyncios_is_named() -> None:
    with pytest.raises(RuntimeError, match="asyncio event loop"):
        engines_of(InMemoryBackend()).here()


async def test_a_blocking_step_in_an_event_loop_is_refused(connect: Any) -> None:
    @protected()
    async def app() -> Any:
        execution = current_execution()
        assert execution is not None
        with pytest.raises(RuntimeError, match="await step"):
            execution.blocking_step("charge", lambda: 1)
        return {"ok": True}

    async with connect(app) as client:
        assert (await client.post("/orders", headers=KEY)).status_code == 200


class Charge(BaseModel):
    id: str
    at: dt.date


async def test_a_step_may_give_what_fastapi_can_serialise(connect: Any) -> None:
    @protected()
    async def app() -> Any:
        execution = current_execution()
        assert execution is not None
        charge = Charge(id="c_1", at=dt.date(2030, 1, 2))
        return await execution.step("charge", lambda: charge)

    async with connect(app) as client:
        answer = await client.post("/orders", headers=KEY)
    assert answer.json() == {"id": "c_1", "at": "2030-01-02"}


async def test_a_unit_test_reaches_the_handler_itself() -> None:
    @idempotent(InMemoryBackend())
    async def create_order(item: str) -> str:
        return f"ordered {item}"

    assert await create_order.__wrapped__("tea") == "ordered tea"  # type: ignore[attr-defined]


async def test_a_client_that_leaves_in_a_skipped_body_ends_the_request() -> None:
    app, handled = FastAPI(debug=True), []

    @app.post("/orders")
    @idempotent(InMemoryBackend(), policy={"on_large_body": "skip", "request_bytes_max": 4})
    async def create_order() -> Any:
        handled.append(1)
        return {}

    messages = iter(
        [
            {"type": "http.request", "body": b"12345", "more_body": True},
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> Any:
        return next(messages)

    async def send(_message: Any) -> None:
        pass

    with pytest.raises(ClientDisconnect):
        await app(order_scope(), receive, send)
    assert handled == []


@pytest.mark.parametrize(
    "lines", [{"content-type": "application/x-ndjson"}, {"x-accel-buffering": "no"}]
)
async def test_a_body_that_is_not_to_be_buffered_arrives_live(lines: dict[str, str]) -> None:
    arrived, app = asyncio.Event(), FastAPI()

    async def parts() -> AsyncIterator[bytes]:
        yield b"{}\n"
        await arrived.wait()

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    async def create_order() -> Any:
        return StreamingResponse(parts(), headers=lines)

    async def receive() -> Any:
        if arrived.is_set():
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message.get("body"):
            arrived.set()

    await asyncio.wait_for(app(order_scope(), receive, send), 20)
    assert arrived.is_set()
    assert await drain(20)


@pytest.mark.parametrize("door", ["decorator", "middleware"])
@pytest.mark.parametrize(
    "lines", [{"content-type": "application/x-ndjson"}, {"x-accel-buffering": "no"}]
)
async def test_a_body_whose_length_is_known_is_replayed(
    connect: Any, lines: dict[str, str], door: str
) -> None:
    backend, app = InMemoryBackend(), FastAPI()
    executed: list[int] = []

    async def create_order() -> Any:
        executed.append(1)
        return Response("{}\n", 201, headers=lines)

    if door == "decorator":
        app.post("/orders")(idempotent(backend)(create_order))
    else:
        app.add_middleware(IdempotencyMiddleware, storage_backend=backend)
        app.post("/orders")(create_order)
    async with connect(app) as client:
        answers = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert [(it.status_code, it.text) for it in answers] == [(201, "{}\n")] * 2
    assert executed == [1]


class WithoutReaders(asyncio.SelectorEventLoop):
    """A loop that receives but watches no descriptor, as the Proactor loop of Windows."""

    def add_reader(self, *_arguments: Any) -> None:
        raise NotImplementedError


def test_a_loop_that_watches_no_descriptor_is_served_too(connect: Any, tmp_path: Any) -> None:
    backend, handled, app = SqliteBackend(tmp_path / "records.db"), [], FastAPI()

    @app.post("/orders")
    @idempotent(backend, wait_timeout=20)
    async def create_order() -> Any:
        handled.append(1)
        await asyncio.sleep(0)
        return {"n": len(handled)}

    async def play() -> list[Any]:
        async with connect(app) as client:
            answers = await asyncio.gather(*(client.post("/orders", headers=KEY) for _ in range(5)))
        await backend.aclose()
        return [answer.json() for answer in answers]

    for _ in range(2):
        loop = WithoutReaders()
        try:
            assert loop.run_until_complete(play()) == [{"n": 1}] * 5
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are evaluated at once")
async def test_annotations_for_type_checkers_alone_are_left_to_them(connect: Any) -> None:
    app = FastAPI()
    source = """
from typing import TYPE_CHECKING, Any
from idemptx import idempotent
from idemptx.backend import InMemoryBackend
if TYPE_CHECKING:
    from shop import Receipt

@app.post("/orders", response_model=None)
@idempotent(InMemoryBackend())
async def create_order(count: int = 1) -> Receipt:
    return {"count": count}
"""
    exec(compile(source, "shop", "exec", dont_inherit=True), {"app": app, "__name__": "shop"})
    async with connect(app) as client:
        tries = [await client.post("/orders?count=2", headers=KEY) for _ in range(2)]
    assert [answer.json() for answer in tries] == [{"count": 2}] * 2


async def test_a_shutdown_waits_for_as_long_as_any_route_says() -> None:
    go, began, sent = asyncio.Event(), asyncio.Event(), []
    routes = {"/quick": {"drain_ms": 1}, "/orders": {"drain_ms": 60_000}}
    messages: asyncio.Queue[Any] = asyncio.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            sent.append("shutdown")
            return
        began.set()
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})
        sent.append("stored")

    async def send(_message: Any) -> None:
        pass

    async def body() -> Any:
        return {"type": "http.request"}

    server = IdempotencyMiddleware(app, InMemoryBackend(), routes=routes)
    living = asyncio.create_task(server({"type": "lifespan"}, messages.get, send))
    messages.put_nowait({"type": "lifespan.startup"})
    request = asyncio.create_task(server(order_scope(), body, send))
    await began.wait()
    request.cancel()
    await asyncio.wait({request})
    messages.put_nowait({"type": "lifespan.shutdown"})
    done, _ = await asyncio.wait({living}, timeout=0.2)
    assert not done
    go.set()
    await living
    assert sent == ["stored", "shutdown"]
