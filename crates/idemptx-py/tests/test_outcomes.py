"""Hooks and counters: what a request came to."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest
from fastapi import FastAPI
from idemptx import IdempotencyMiddleware, RequestOutcome, idempotent, outcome_counts
from idemptx.backend import InMemoryBackend
from protocol import KEY

pytestmark = pytest.mark.anyio


class Shop:
    """An application under one of the two layers, and the outcomes that its hook was told."""

    def __init__(self, layer: str, hook: Any = None, **options: Any) -> None:
        self.seen: list[RequestOutcome] = []
        self.began, self.go = asyncio.Event(), asyncio.Event()
        self.app: Any = FastAPI()
        options |= {"on_outcome": hook or self.seen.append, "required": True}

        async def create_order(hold: bool = False, fails: bool = False, status: int = 200) -> Any:
            from fastapi.responses import JSONResponse  # noqa: PLC0415

            if hold:
                self.began.set()
                await self.go.wait()
            if fails:
                raise RuntimeError("oops")
            return JSONResponse({}, status)

        backend = InMemoryBackend()
        if layer == "decorator":
            create_order = idempotent(backend, **options)(create_order)
        self.app.post("/orders")(create_order)
        if layer == "middleware":
            self.app.add_middleware(IdempotencyMiddleware, storage_backend=backend, **options)

    def told(self) -> list[tuple[str, str, int]]:
        return [(it.outcome, it.reason, it.attempt) for it in self.seen]


@pytest.fixture(params=["decorator", "middleware"])
def layer(request: Any) -> str:
    return str(request.param)


async def test_a_hook_is_told_of_each_outcome_once(connect: Any, layer: str) -> None:
    shop, before = Shop(layer), outcome_counts()
    async with connect(shop.app) as client:
        await client.post("/orders")
        first = asyncio.create_task(client.post("/orders?hold=true", headers=KEY))
        await asyncio.wait_for(shop.began.wait(), 20)
        await client.post("/orders?hold=true", headers=KEY)
        shop.go.set()
        await first
        await client.post("/orders?hold=true", headers=KEY)
        await client.post("/orders?hold=true", headers=KEY, json=2)
        await client.post("/orders?status=503", headers={"Idempotency-Key": "l"})
    expected = [
        ("refused", "missing-key", 0),
        ("refused", "in-progress", 0),
        ("executed", "", 1),
        ("replayed", "", 0),
        ("refused", "key-reused", 0),
        ("unstored", "", 1),
    ]
    assert shop.told() == expected
    assert {(it.method, it.path) for it in shop.seen} == {("POST", "/orders")}
    now = outcome_counts()
    for outcome, reason, _ in expected:
        counted = now[outcome, reason] - before.get((outcome, reason), 0)  # type: ignore[index,call-overload]
        assert counted == 1, (outcome, reason)


async def test_a_hook_gets_the_exception_of_a_handler(connect: Any, layer: str) -> None:
    shop = Shop(layer)
    async with connect(shop.app) as client:
        assert (await client.post("/orders?fails=true", headers=KEY)).status_code == 500
    [told] = shop.seen
    assert (told.outcome, told.reason, str(told.error)) == ("unstored", "handler-failed", "oops")


async def test_a_hook_that_fails_changes_nothing(connect: Any, layer: str, caplog: Any) -> None:
    def fail(_outcome: RequestOutcome) -> None:
        raise RuntimeError("the hook is broken")

    shop = Shop(layer, fail)
    async with connect(shop.app) as client:
        tries = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in tries] == [200, 200]
    assert "the hook is broken" in caplog.text


def test_what_cannot_be_called_is_no_hook() -> None:
    for make in (idempotent, functools.partial(IdempotencyMiddleware, FastAPI())):
        with pytest.raises(TypeError, match="on_outcome"):
            make(InMemoryBackend(), on_outcome="not a function")
        with pytest.raises(TypeError, match="not awaited"):
            make(InMemoryBackend(), on_outcome=awaited)


async def awaited(_outcome: Any) -> None:
    """Would be called and never run."""
