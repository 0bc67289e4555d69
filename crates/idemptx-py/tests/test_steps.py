"""Recovery points: steps of a handler whose results outlive it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from idemptx import RecoveryException, current_execution, idempotent
from idemptx.backend import InMemoryBackend, RedisBackend, from_url
from protocol import KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemptx import Execution

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "redis", "sqlite", "postgres", "adapter"])
def backend(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    if request.param == "memory":
        return InMemoryBackend()
    if request.param == "sqlite":
        return from_url(f"sqlite:{tmp_path}/records.db")
    if request.param == "postgres":
        return from_url(request.getfixturevalue("postgres_server").url)
    server = request.getfixturevalue("redis_server")
    return RedisBackend(server.url) if request.param == "redis" else _Own(server.url)


class _Own(RedisBackend):
    """A subclass with its own way of keeping things: reached through its methods."""

    def __init__(self, url: str) -> None:
        import redis  # noqa: PLC0415

        super().__init__(redis.Redis.from_url(url))

    def set(self, key: str, value: dict[str, Any], ttl: int) -> None:
        super().set(key, value, ttl)


def _here() -> Execution:
    execution = current_execution()
    assert execution is not None
    return execution


async def test_a_step_runs_once_in_all_attempts(connect: Any, backend: Any) -> None:
    calls: list[str] = []
    app = FastAPI()

    @app.post("/pay")
    @idempotent(backend)
    async def pay() -> dict[str, Any]:
        execution = _here()

        async def charge() -> dict[str, Any]:
            calls.append("charge")
            return {"id": "c_1", "amounts": (1, 2)}

        charged = await execution.step("charge", charge)
        booked = await execution.step("book", lambda: calls.append("book") or len(calls))
        if calls.count("attempt") == 0:
            calls.append("attempt")
            raise RuntimeError("oops")
        return {"charged": charged, "booked": booked}

    async with connect(app) as client:
        assert (await client.post("/pay", headers=KEY)).status_code == 500
        second = await client.post("/pay", headers=KEY)
        assert second.json() == {"charged": {"id": "c_1", "amounts": [1, 2]}, "booked": 2}
        # Another operation has other steps.
        other = await client.post("/pay", headers={"Idempotency-Key": "other"})
    assert other.json()["booked"] == 5
    assert calls == ["charge", "book", "attempt", "charge", "book"]
    await _close(backend)


async def test_a_plain_function_has_steps_too(connect: Any, backend: Any) -> None:
    calls: list[str] = []
    app = FastAPI()

    @app.post("/pay")
    @idempotent(backend)
    def pay() -> dict[str, Any]:
        def charge() -> str:
            calls.append("charge")
            return "c_1"

        charged = _here().blocking_step("charge", charge)
        calls.append("attempt")
        if len(calls) == 2:
            raise RuntimeError("oops")
        return {"charged": charged}

    async with connect(app) as client:
        assert (await client.post("/pay", headers=KEY)).status_code == 500
        assert (await client.post("/pay", headers=KEY)).json() == {"charged": "c_1"}
    assert calls == ["charge", "attempt", "attempt"]
    await _close(backend)


async def test_what_fails_is_not_kept(connect: Any, backend: Any) -> None:
    calls: list[int] = []
    app = FastAPI()

    @app.post("/pay")
    @idempotent(backend)
    async def pay() -> int:
        def charge() -> int:
            calls.append(1)
            if len(calls) == 1:
                raise RuntimeError("declined")
            return len(calls)

        return await _here().step("charge", charge)

    async with connect(app) as client:
        assert (await client.post("/pay", headers=KEY)).status_code == 500
        assert (await client.post("/pay", headers=KEY)).json() == 2
    await _close(backend)


async def test_a_step_belongs_to_its_request(connect: Any) -> None:
    """A key that was released may be used for another request, whose steps are not the first's."""
    backend = InMemoryBackend()
    raised: list[str] = []
    app = FastAPI()

    @app.post("/pay")
    @idempotent(backend)
    async def pay(body: dict[str, int]) -> int:
        try:
            paid = await _here().step("charge", lambda: body["amount"])
        except ValueError as error:
            raised.append(str(error))
        else:
            assert paid == body["amount"]
        raise RuntimeError("oops")

    async with connect(app) as client:
        await client.post("/pay", headers=KEY, json={"amount": 1})
        await client.post("/pay", headers=KEY, json={"amount": 2})
    assert len(raised) == 1
    assert "other content" in raised[0]


@pytest.mark.parametrize(
    ("label", "result", "advice"),
    [
        ("", 1, "1 to 255 bytes"),
        ("x" * 256, 1, "1 to 255 bytes"),
        ("nan", float("nan"), "JSON"),
        ("object", object(), "JSON"),
        ("large", "x" * 2_000_000, "response_bytes_max"),
    ],
)
async def test_a_step_that_cannot_be_meant_says_why(
    connect: Any, label: str, result: Any, advice: str
) -> None:
    raised: list[str] = []

    async def pay() -> None:
        with pytest.raises((TypeError, ValueError)) as refused:
            await _here().step(label, lambda: result)
        raised.append(str(refused.value))

    await _run(connect, InMemoryBackend(), pay)
    assert advice in raised[0]


async def test_an_execution_has_a_hundred_steps_at_most(connect: Any) -> None:
    raised: list[str] = []

    async def pay() -> None:
        for number in range(100):
            assert await _here().step(f"{number}", lambda: 1) == 1
        with pytest.raises(ValueError, match="100") as refused:
            await _here().step("one more", lambda: 1)
        raised.append(str(refused.value))

    await _run(connect, InMemoryBackend(), pay)
    assert len(raised) == 1


async def test_without_an_answer_of_the_store_nothing_runs(connect: Any, own_postgres: Any) -> None:
    server = own_postgres()
    calls: list[int] = []
    raised: list[Exception] = []

    async def pay() -> None:
        server.stop()
        try:
            await _here().step("charge", lambda: calls.append(1))
        except RecoveryException as error:
            raised.append(error)

    backend = from_url(server.url)
    await _run(connect, backend, pay)
    assert calls == []
    assert len(raised) == 1
    server.start()
    await backend.aclose()


async def _run(connect: Any, backend: Any, work: Callable[[], Any]) -> None:
    app = FastAPI()

    @app.post("/pay")
    @idempotent(backend)
    async def pay() -> str:
        await work()
        return "done"

    async with connect(app) as client:
        answer = await client.post("/pay", headers=KEY)
    assert answer.status_code == 200, answer.text


async def _close(backend: Any) -> None:
    await backend.aclose()
    if getattr(backend, "redis", None) is not None:
        backend.redis.close()
