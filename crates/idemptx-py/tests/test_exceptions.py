"""Refusals, answered by the application's own handlers or with a problem document."""

from __future__ import annotations

import asyncio
from typing import Any

import idemptx
import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from idemptx import idempotent
from idemptx.backend import InMemoryBackend
from starlette.exceptions import HTTPException as StarletteHTTPException

pytestmark = pytest.mark.anyio

KEY = {"Idempotency-Key": "k"}
TEXTS = {
    "MissingKeyException": "Missing Idempotency-Key",
    "ConflictRequestException": "Request payload does not match previous Idempotency-Key usage.",
    "RequestInProgressException": "Request is being processed. Try again later.",
}


def test_the_hierarchy_is_the_originals() -> None:
    base = idemptx.IdempotencyException
    assert issubclass(idemptx.MissingKeyException, base)
    assert issubclass(idemptx.IdempotencyConflictException, base)
    assert issubclass(idemptx.ConflictRequestException, idemptx.IdempotencyConflictException)
    assert issubclass(idemptx.RequestInProgressException, idemptx.IdempotencyConflictException)
    assert not issubclass(idemptx.MissingKeyException, idemptx.IdempotencyConflictException)


@pytest.mark.parametrize("name", TEXTS)
def test_an_exceptions_text_is_bare(name: str) -> None:
    raised = getattr(idemptx, name)("just this")
    assert str(raised) == "just this"
    assert isinstance(raised, StarletteHTTPException)


@pytest.mark.parametrize("caught", ["IdempotencyException", "of its own"])
async def test_the_applications_handler_gets_each_refusal(connect: Any, caught: str) -> None:
    app, began, finish = _app()

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse([type(error).__name__, str(error)], 418)

    for name in TEXTS if caught == "of its own" else [caught]:
        app.add_exception_handler(getattr(idemptx, name), handle)
    for name, answer in (await _refusals(app, began, finish, connect)).items():
        assert answer.status_code == 418, name
        assert answer.json() == [name, TEXTS[name]]


async def test_the_applications_http_exception_handler_gets_them_too(connect: Any) -> None:
    app, began, finish = _app()

    @app.exception_handler(StarletteHTTPException)
    async def handle(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    refusals = await _refusals(app, began, finish, connect)
    assert [answer.status_code for answer in refusals.values()] == [400, 422, 409]
    assert [answer.json()["error"] for answer in refusals.values()] == list(TEXTS.values())
    assert int(refusals["RequestInProgressException"].headers["retry-after"]) >= 1


async def test_without_handlers_refusals_are_problem_documents(connect: Any) -> None:
    refusals = await _refusals(*_app(), connect)
    codes = {name: answer.json()["code"] for name, answer in refusals.items()}
    assert codes == {
        "MissingKeyException": "missing-key",
        "ConflictRequestException": "key-reused",
        "RequestInProgressException": "in-progress",
    }
    for answer in refusals.values():
        problem = answer.json()
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["cache-control"] == "no-store"
        assert 'rel="describedby"' in answer.headers["link"]
        assert problem["status"] == answer.status_code
        assert {"type", "title", "retryable", "safe_new_key"} <= problem.keys()
        assert "idempotency-stored" not in answer.headers
    assert int(refusals["RequestInProgressException"].headers["retry-after"]) >= 1


async def test_the_stripe_profile_refuses_a_reused_key_with_400(connect: Any) -> None:
    refusals = await _refusals(*_app(profile="stripe"), connect)
    assert refusals["ConflictRequestException"].status_code == 400
    assert refusals["ConflictRequestException"].json()["code"] == "key-reused"


async def test_an_applications_own_http_exceptions_are_not_touched(connect: Any) -> None:
    app = FastAPI()

    @app.post("/orders")
    async def create_order() -> None:
        raise HTTPException(402, "no money")

    async with connect(app) as client:
        answer = await client.post("/orders", headers=KEY)
    assert (answer.status_code, answer.json()) == (402, {"detail": "no money"})


async def test_a_refusal_never_contains_the_raw_key(connect: Any) -> None:
    app, _, finish = _app()
    finish.set()
    secret = "s3cr3t-between-us"
    async with connect(app) as client:
        await client.post("/orders", headers={"Idempotency-Key": secret}, json=1)
        mismatch = await client.post("/orders", headers={"Idempotency-Key": secret}, json=2)
        invalid = await client.post("/orders", headers={"Idempotency-Key": f"{secret},{secret}"})
    assert (mismatch.status_code, invalid.status_code) == (422, 400)
    assert secret not in mismatch.text + invalid.text
    assert secret not in str(invalid.headers)


def _app(**options: Any) -> tuple[FastAPI, asyncio.Event, asyncio.Event]:
    app, began, finish = FastAPI(), asyncio.Event(), asyncio.Event()

    @app.post("/orders")
    @idempotent(InMemoryBackend(), **options)
    async def create_order() -> dict[str, bool]:
        began.set()
        await finish.wait()
        return {"ok": True}

    return app, began, finish


async def _refusals(
    app: FastAPI, began: asyncio.Event, finish: asyncio.Event, connect: Any
) -> dict[str, Any]:
    async with connect(app) as client:
        missing = await client.post("/orders")
        first = asyncio.create_task(client.post("/orders", headers=KEY, json=1))
        await began.wait()
        progress = await client.post("/orders", headers=KEY, json=1)
        finish.set()
        await first
        conflict = await client.post("/orders", headers=KEY, json=2)
    return {
        "MissingKeyException": missing,
        "ConflictRequestException": conflict,
        "RequestInProgressException": progress,
    }


@pytest.mark.parametrize("is_handled", [False, True])
async def test_handlers_that_sentry_has_wrapped_count_as_what_they_were(
    connect: Any, is_handled: bool
) -> None:
    app = FastAPI()

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    async def create_order() -> Any:
        return {}

    if is_handled:

        @app.exception_handler(idemptx.MissingKeyException)
        async def missing(_request: Any, _error: Any) -> Any:
            return JSONResponse({"mine": True}, 400)

    middleware = app.build_middleware_stack()
    layer: Any = middleware
    while not hasattr(layer, "_exception_handlers"):
        layer = layer.app
    old_handlers = dict(layer._exception_handlers)

    async def patched(request: Any, error: Any) -> Any:
        kinds = [kind for kind in type(error).__mro__ if kind in old_handlers]
        return await old_handlers[kinds[0]](request, error)

    patched.__module__ = "sentry_sdk.integrations.starlette"
    for kind in old_handlers:
        layer._exception_handlers[kind] = patched
    app.middleware_stack = middleware
    async with connect(app) as client:
        answer = await client.post("/orders")
    assert answer.status_code == 400
    assert answer.json().get("mine" if is_handled else "code")
