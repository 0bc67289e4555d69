"""Dependencies and background tasks around a decorated handler."""
# Annotations are read at run time by FastAPI, which sees no names of enclosing functions:
# ruff: noqa: TC003

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

import fastapi.routing
import pytest
from fastapi import (
    BackgroundTasks,
    Depends,
    FastAPI,
    HTTPException,
    Response,
)
from fastapi.responses import (
    JSONResponse,
)
from idemptx import current_execution, idempotent
from idemptx.backend import InMemoryBackend
from protected import KEY, protected

pytestmark = pytest.mark.anyio


async def test_dependencies_run_for_each_request_and_can_be_overridden(connect: Any) -> None:
    seen: list[str] = []

    def user() -> str:
        seen.append("user")
        return "alice"

    @protected()
    async def app(name: str = Depends(user)) -> Any:
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

    @protected()
    async def app(transaction: str = Depends(transaction)) -> Any:
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


@pytest.mark.parametrize("on_panic", ["release", "quarantine"])
@pytest.mark.parametrize("in_code", [True, False])
@pytest.mark.parametrize(
    ("outcome", "code"),
    [("store", "result-unavailable"), ("unknown", "outcome-unknown"), ("release", None)],
)
async def test_what_a_response_says_counts_although_a_dependency_then_fails(
    connect: Any, outcome: Any, code: str | None, in_code: bool, on_panic: str
) -> None:
    entered = calls = 0

    async def failing() -> AsyncIterator[None]:
        nonlocal entered
        entered += 1
        is_first = entered == 1
        yield
        if is_first:
            raise RuntimeError

    scope: Any = {"scope": "function"} if "scope" in inspect.signature(Depends).parameters else {}

    @protected(policy={"on_panic": on_panic})
    async def app(failed: None = Depends(failing, **scope)) -> Any:
        del failed
        nonlocal calls
        calls += 1
        if not in_code:
            return JSONResponse({}, headers={"Idempotency-Outcome": outcome})
        execution = current_execution()
        assert execution is not None
        execution.direct(outcome)
        return {}

    async with connect(app) as client:
        tries = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert tries[0].status_code == 500
    # A release is not to be relied on once more than the handler has failed: as the policy says.
    code = code or {"release": None, "quarantine": "outcome-unknown"}[on_panic]
    assert tries[1].json().get("code") == code
    assert calls == (2 if code is None else 1)


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

    @protected(wait_timeout=20)
    async def app(session: str = Depends(session)) -> Any:
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

    async def mail() -> None:
        mailed.set()

    @protected()
    async def app(tasks: BackgroundTasks) -> Any:
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


async def test_background_tasks_of_a_handler_that_raised_are_not_run(connect: Any) -> None:
    mails: list[str] = []
    app = FastAPI()

    async def mailing(tasks: BackgroundTasks) -> None:
        tasks.add_task(mails.append, "of a dependency")

    async def create_order(tasks: BackgroundTasks, mailing: None = Depends(mailing)) -> Any:
        tasks.add_task(mails.append, "of the handler")
        raise HTTPException(402, "no money")

    app.post("/plain")(create_order)
    app.post("/safe")(idempotent(InMemoryBackend())(create_order))
    async with connect(app) as client:
        for path in ("/plain", "/safe", "/safe"):
            assert (await client.post(path, headers=KEY)).status_code == 402
    assert mails == []
