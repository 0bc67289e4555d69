"""Single execution under adverse conditions."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis
from fastapi import FastAPI
from idemptx import IdempotencyMiddleware, Severity, current_execution, idempotent
from idemptx.backend import InMemoryBackend, RedisBackend, from_url

if TYPE_CHECKING:
    import httpx

pytestmark = pytest.mark.anyio

KEY = {"Idempotency-Key": "k"}
LEASE_MS = 2000


async def test_a_handler_that_blocks_its_loop_keeps_its_lease(
    connect: Any, redis_server: Any
) -> None:
    """An `async def` that calls a blocking client starves its loop, but not its lease."""
    executions = []

    def app() -> FastAPI:
        app = FastAPI()

        @app.post("/orders")
        @idempotent(from_url(redis_server.url), policy={"lease_ms": LEASE_MS})
        async def create_order() -> dict[str, int]:
            executions.append(1)
            time.sleep(3 * LEASE_MS / 1000)  # noqa: ASYNC251 - the very mistake
            return {"n": len(executions)}

        return app

    elsewhere: list[httpx.Response] = []

    def retry_in_another_loop() -> None:
        async def retry() -> None:
            while not executions:  # noqa: ASYNC110 - the other loop has no event to share
                await asyncio.sleep(0.01)
            await asyncio.sleep(2 * LEASE_MS / 1000)
            async with connect(app()) as client:
                elsewhere.append(await client.post("/orders", headers=KEY))

        asyncio.run(retry())

    thread = threading.Thread(target=retry_in_another_loop)
    thread.start()
    async with connect(app()) as client:
        first = await client.post("/orders", headers=KEY)
    await asyncio.to_thread(thread.join)
    assert first.json() == {"n": 1}
    assert elsewhere[0].status_code == 409
    assert executions == [1]


async def test_an_execution_that_lost_its_lease_is_told_and_answers_with_the_other(
    connect: Any, redis_server: Any
) -> None:
    """Deleting records by hand takes leases away; the first answer kept is the only one."""
    app = FastAPI()
    lost: list[bool] = []
    executions = []

    @app.post("/orders")
    @idempotent(RedisBackend(redis_server.url), policy={"lease_ms": LEASE_MS})
    async def create_order() -> dict[str, int]:
        executions.append(1)
        mine = len(executions)
        execution = current_execution()
        assert execution is not None
        if mine == 1:
            redis.Redis.from_url(redis_server.url).flushall()
            for _ in range(1000):
                if execution.is_lost:
                    break
                await asyncio.sleep(0.01)
            lost.append(execution.is_lost)
        return {"n": mine}

    async with connect(app) as client:
        answer = await client.post("/orders", headers=KEY)
    assert lost == [True]
    assert answer.status_code == 409
    assert executions == [1]


async def test_who_comes_once_the_lease_is_lost_is_not_held_up_by_the_handler(
    connect: Any, redis_server: Any
) -> None:
    app = FastAPI()
    executions = []
    lost, go_on = asyncio.Event(), asyncio.Event()

    @app.post("/orders")
    @idempotent(RedisBackend(redis_server.url), policy={"lease_ms": LEASE_MS})
    async def create_order() -> dict[str, int]:
        executions.append(1)
        mine = len(executions)
        execution = current_execution()
        assert execution is not None
        if mine == 1:
            redis.Redis.from_url(redis_server.url).flushall()
            while not execution.is_lost:  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.01)
            lost.set()
            await go_on.wait()
        return {"n": mine}

    async with connect(app) as client:
        first = asyncio.create_task(client.post("/orders", headers=KEY))
        await lost.wait()
        second = await client.post("/orders", headers=KEY)
        go_on.set()
        assert second.json() == {"n": 2}
        assert (await first).json() == {"n": 2}
    assert len(executions) == 2


async def test_memory_in_one_of_several_workers_is_called_unsafe(
    connect: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert not (await InMemoryBackend().check()).is_unsafe
    monkeypatch.setenv("WEB_CONCURRENCY", "2")
    report = await InMemoryBackend().check()
    assert [finding.severity for finding in report.findings] == [Severity.UNSAFE]

    app = FastAPI()

    @app.post("/orders")
    @idempotent(InMemoryBackend())
    async def create_order() -> dict[str, bool]:
        return {"ok": True}

    async with connect(app) as client:
        assert (await client.post("/orders", headers=KEY)).status_code == 200
    assert "one of several workers" in caplog.text


async def test_payments_refuse_memory_in_one_of_several_workers(
    connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    app = FastAPI()

    @app.post("/orders")
    async def create_order() -> None:
        pytest.fail("executed on a store that the policy refuses")

    app.add_middleware(
        IdempotencyMiddleware,
        storage_backend=InMemoryBackend(),
        profile="payments",
        policy={"scope": "shared"},
    )
    async with connect(app) as client:
        answer = await client.post("/orders", headers=KEY)
    assert answer.status_code == 503
    assert answer.json()["code"] == "store-unavailable"


async def test_every_transport_finds_the_same_of_a_server(redis_server: Any) -> None:
    class OwnClient(redis.Redis):
        """A client whose behaviour cannot be read from its settings."""

    decoding = OwnClient.from_url(redis_server.url, decode_responses=True)
    backends = [
        RedisBackend(redis_server.url),
        RedisBackend(OwnClient.from_url(redis_server.url)),
        RedisBackend(decoding),
    ]
    assert [backend.transport for backend in backends] == ["in-loop", "client", "client"]
    reports = [await backend.check() for backend in backends]
    found = [
        (report.guarantee.partition(":")[2], [finding.text for finding in report.findings])
        for report in reports
    ]
    assert found[0] == found[1] == found[2]
    assert reports[0].guarantee.startswith("redis ")
