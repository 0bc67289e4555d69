"""Leases: kept alive for as long as their handlers run, and lost."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
import redis
from idemptx import RequestOutcome, current_execution
from idemptx.backend import RedisBackend, from_url
from protected import protected
from protocol import KEY, PATIENT

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

pytestmark = pytest.mark.anyio

LEASE_MS = 1500
"""Long enough that a slow machine renews in time, which it does at a third of it."""
LAPSED_SECONDS = 1.3 * LEASE_MS / 1000


@pytest.fixture(params=["redis", "sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/records.db"
    server = request.getfixturevalue(f"{request.param}_server")
    return str(server.url)


async def test_a_handler_that_blocks_its_loop_keeps_its_lease(connect: Any, url: str) -> None:
    """An `async def` that calls a blocking client starves its loop, but not its lease."""
    executions: list[int] = []
    began, retried = threading.Event(), threading.Event()

    def app() -> FastAPI:
        @protected(from_url(url), policy={**PATIENT, "lease_ms": LEASE_MS})
        async def app() -> dict[str, int]:
            executions.append(1)
            began.set()
            assert retried.wait(60)
            return {"n": len(executions)}

        return app

    elsewhere: list[httpx.Response] = []

    def retry_in_another_loop() -> None:
        async def retry() -> None:
            await asyncio.to_thread(began.wait, 60)
            await asyncio.sleep(LAPSED_SECONDS)
            async with connect(app()) as client:
                elsewhere.append(await client.post("/orders", headers=KEY))

        try:
            asyncio.run(retry())
        finally:
            retried.set()

    thread = threading.Thread(target=retry_in_another_loop)
    thread.start()
    async with connect(app()) as client:
        first = await client.post("/orders", headers=KEY)
    await asyncio.to_thread(thread.join)
    assert first.json() == {"n": 1}
    assert elsewhere[0].status_code == 409
    assert executions == [1]


async def test_a_hundred_leases_are_renewed_at_once(connect: Any, durable_url: str) -> None:
    """Renewed one by one, leases would wait for a hundred commits, and some for too long."""
    go, all_run = asyncio.Event(), asyncio.Event()
    running: list[str] = []
    backends = [from_url(durable_url) for _ in range(2)]

    def app(backend: Any) -> FastAPI:
        @protected(backend, path="/orders/{number}", policy={**PATIENT, "lease_ms": 2 * LEASE_MS})
        async def app(number: str) -> dict[str, str]:
            running.append(number)
            if len(running) == 100:
                all_run.set()
            await go.wait()
            return {"n": number}

        return app

    async def send(client: httpx.AsyncClient, number: int) -> httpx.Response:
        headers = {"Idempotency-Key": f"k{number}"}
        return await client.post(f"/orders/{number}", headers=headers)

    async with connect(app(backends[0])) as client, connect(app(backends[1])) as other:
        sending = [asyncio.create_task(send(client, number)) for number in range(100)]
        await asyncio.wait_for(all_run.wait(), 60)
        await asyncio.sleep(2 * LAPSED_SECONDS)
        retries = await asyncio.gather(*(send(other, number) for number in range(100)))
        go.set()
        answers = await asyncio.gather(*sending)
    assert {answer.status_code for answer in retries} == {409}
    assert {answer.status_code for answer in answers} == {200}
    assert len(running) == 100
    for backend in backends:
        await backend.aclose()


async def test_an_execution_that_lost_its_lease_is_told_and_answers_with_the_other(
    connect: Any, redis_server: Any
) -> None:
    """Deleting records by hand takes leases away; the first answer kept is the only one."""
    lost: list[bool] = []
    executions = []
    outcomes: list[tuple[str, str, int]] = []

    def note(it: RequestOutcome) -> None:
        outcomes.append((it.outcome, it.reason, it.attempt))

    @protected(RedisBackend(redis_server.url), policy={"lease_ms": 600}, on_outcome=note)
    async def app() -> dict[str, int]:
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
    assert outcomes == [("fenced", "in-progress", 1)]


async def test_who_comes_once_the_lease_is_lost_is_not_held_up_by_the_handler(
    connect: Any, redis_server: Any
) -> None:
    executions = []
    lost, go_on = asyncio.Event(), asyncio.Event()
    outcomes: list[tuple[str, str, int]] = []

    def note(it: RequestOutcome) -> None:
        outcomes.append((it.outcome, it.reason, it.attempt))

    @protected(RedisBackend(redis_server.url), policy={"lease_ms": 600}, on_outcome=note)
    async def app() -> dict[str, int]:
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
    assert outcomes == [("executed", "", 1), ("fenced", "replayed", 1)]
