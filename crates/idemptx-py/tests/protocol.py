"""The requirements that every backend must meet."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from protected import KEY, protected

PATIENT = {"store_timeout_ms": {"claim": 20_000, "settle": 20_000}}
"""Part of a policy, for a load under which a slow machine needs its time."""


async def executes_once_replays_and_refuses(connect: Any, backend: Any) -> None:
    began, go = asyncio.Event(), asyncio.Event()
    calls = 0

    @protected(backend, wait_timeout=20, policy=PATIENT)
    async def app(fail: bool = False) -> Any:
        nonlocal calls
        calls += 1
        began.set()
        await go.wait()
        if fail and calls == 2:
            raise RuntimeError("oops")
        return {"n": calls, "text": "\u00e4\u20ac" * 200}

    async with connect(app) as client:
        first = asyncio.create_task(client.post("/orders", headers=KEY, json=1))
        await began.wait()
        waiters = [
            asyncio.create_task(client.post("/orders", headers=KEY, json=1)) for _ in range(8)
        ]
        await asyncio.sleep(0)
        go.set()
        answers = [await first, *await asyncio.gather(*waiters)]
        assert [answer.status_code for answer in answers] == [200] * 9
        assert {answer.content for answer in answers} == {answers[0].content}
        assert calls == 1
        again = await client.post("/orders", headers=KEY, json=1)
        other = await client.post("/orders", headers=KEY, json=2)
        assert (again.content, again.headers["x-idempotency-status"]) == (answers[0].content, "hit")
        assert other.status_code == 422
        # A failure gives the key back.
        key = {"Idempotency-Key": "failing"}
        failing = [await client.post("/orders?fail=1", headers=key) for _ in range(3)]
        assert [answer.status_code for answer in failing] == [500, 200, 200]
        assert calls == 3


def serves_loops_at_once(connect: Any, backend: Any, keys: int) -> None:
    """Sends all keys through an event loop in each of three threads."""
    calls: list[str] = []

    @protected(backend, path="/orders/{number}", wait_timeout=20, policy=PATIENT)
    async def app(number: str) -> Any:
        calls.append(number)
        await asyncio.sleep(0.002)
        return {"n": number}

    async def send_all() -> set[int]:
        async with connect(app) as client:
            sent = [
                client.post(f"/orders/{n}", headers={"Idempotency-Key": f"k{n}"})
                for n in range(keys)
            ]
            return {answer.status_code for answer in await asyncio.gather(*sent)}

    statuses: list[set[int]] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(asyncio.run(send_all()))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [{200}] * 3
    assert sorted(calls) == sorted(str(n) for n in range(keys))
