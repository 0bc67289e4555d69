"""Bodies that reach their client while they are made: who reads them, and what ends them."""
# Annotations are read at run time by FastAPI, which sees no names of enclosing functions:
# ruff: noqa: TC003

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from idemptx import IdempotencyMiddleware, drain, idempotent
from idemptx._engines import engines_of
from idemptx.backend import InMemoryBackend
from own_backends import OwnAsyncBackend
from protected import KEY, protected

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("media_type", ["text/event-stream", "text/csv"])
async def test_without_detaching_a_live_body_flows_and_ends(
    connect: Any, media_type: str, leaves: bool
) -> None:
    """The handler's task reads it, so that another has to make it."""
    backend, began = InMemoryBackend(), asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(40):
            began.set()
            yield b"x" * 65536

    @protected(backend, detach=False)
    async def app() -> Any:
        return StreamingResponse(parts(), media_type=media_type)

    async with connect(app) as client:
        sending = asyncio.create_task(client.post("/orders", headers=KEY))
        await began.wait()
        if leaves:
            sending.cancel()
            await asyncio.wait({sending})
        else:
            answer = await sending
            assert (answer.status_code, len(answer.content)) == (200, 40 * 65536)
            again = await client.post("/orders", headers=KEY)
            assert (again.status_code, again.json()["code"]) == (409, "result-unavailable")
    assert await drain(20)
    assert engines_of(backend).here().executions == 0


@pytest.mark.parametrize("door", ["decorator", "undetached", "middleware"])
@pytest.mark.parametrize("media_type", ["text/event-stream", "text/csv"])
@pytest.mark.parametrize(
    "case",
    [
        ("whole", "quarantine", 200),
        ("broken", "release", 200),
        ("broken", "quarantine", "outcome-unknown"),
    ],
)
async def test_a_key_that_is_released_is_free_once_the_body_has_ended(
    connect: Any, door: str, media_type: str, case: tuple[str, str, int | str]
) -> None:
    """Released any earlier, a retry would run beside the handler that makes its body."""
    ends, on_panic, becomes = case
    backend, app = InMemoryBackend(), FastAPI()
    flows, go_on = asyncio.Event(), asyncio.Event()
    policy = {"on_panic": on_panic, "response_bytes_max": 1}
    calls = 0

    async def parts() -> AsyncIterator[bytes]:
        yield b"abc"
        flows.set()
        await go_on.wait()
        if ends == "broken" and calls == 1:
            raise RuntimeError("half of it")
        yield b"def"

    async def export() -> Any:
        nonlocal calls
        calls += 1
        headers = {"Idempotency-Outcome": "release"}
        return StreamingResponse(parts(), media_type=media_type, headers=headers)

    if door == "middleware":
        app.add_middleware(IdempotencyMiddleware, storage_backend=backend, policy=policy)
        app.post("/orders")(export)
    else:
        detach = door == "decorator"
        app.post("/orders")(idempotent(backend, policy=policy, detach=detach)(export))
    async with connect(app) as client:
        sending = asyncio.create_task(client.post("/orders", headers=KEY))
        await asyncio.wait_for(flows.wait(), 20)
        early = await client.post("/orders", headers=KEY)
        assert (early.status_code, early.json()["code"]) == (409, "in-progress")
        go_on.set()
        await asyncio.wait({sending})
        assert await drain(20)
        again = await client.post("/orders", headers=KEY)
    assert calls == (2 if becomes == 200 else 1)
    if becomes == 200:
        assert again.headers["Idempotency-Stored"] == "false"
    else:
        assert (again.status_code, again.json()["code"]) == (409, becomes)
    assert await drain(20)
    assert engines_of(backend).here().executions == 0


class SlowToRelease(OwnAsyncBackend):
    """Releases when it is let to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.may = asyncio.Event(), asyncio.Event()

    async def release_lock(self, key: str) -> None:
        self.asked.set()
        await self.may.wait()
        await super().release_lock(key)


@pytest.mark.parametrize("door", ["decorator", "undetached", "middleware"])
@pytest.mark.parametrize("ends", ["whole", "broken"])
@pytest.mark.parametrize("is_away", [False, True])
async def test_a_client_has_the_end_of_a_body_once_the_key_is_free(
    connect: Any, door: str, ends: str, is_away: bool
) -> None:
    """Sooner, the client's next request with the key would find it still held."""
    backend, app = SlowToRelease(), FastAPI()
    policy = {"store_timeout_ms": {"settle": 1 if is_away else 60_000}}
    calls = 0

    async def parts() -> AsyncIterator[bytes]:
        yield b"abc"
        if ends == "broken":
            raise RuntimeError("half of it")

    async def export() -> Any:
        nonlocal calls
        calls += 1
        headers = {"Idempotency-Outcome": "release"}
        return StreamingResponse(parts(), media_type="text/event-stream", headers=headers)

    if door == "middleware":
        app.add_middleware(IdempotencyMiddleware, storage_backend=backend, policy=policy)
        app.post("/orders")(export)
    else:
        detach = door == "decorator"
        app.post("/orders")(idempotent(backend, policy=policy, detach=detach)(export))
    async with connect(app) as client:
        sending = asyncio.create_task(client.post("/orders", headers=KEY, content="a"))
        await asyncio.wait_for(backend.asked.wait(), 20)
        if is_away:
            await asyncio.wait({sending}, timeout=20)
            assert sending.done()
            backend.may.set()
        else:
            for _ in range(100):
                await asyncio.sleep(0)
            assert not sending.done()
            backend.may.set()
            await asyncio.wait({sending}, timeout=20)
            again = asyncio.create_task(client.post("/orders", headers=KEY, content="b"))
            await asyncio.wait({sending, again})
            assert calls == 2
    assert await drain(20)


async def test_without_detaching_a_body_that_breaks_off_frees_its_key(connect: Any) -> None:
    calls = 0

    async def parts() -> AsyncIterator[bytes]:
        yield b"a"
        if calls == 1:
            raise RuntimeError("half of it")

    @protected(detach=False)
    async def app() -> Any:
        nonlocal calls
        calls += 1
        return StreamingResponse(parts())

    async with connect(app) as client:
        answers = [await client.post("/orders", headers=KEY) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [500, 200, 200]
    assert calls == 2
