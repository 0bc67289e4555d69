"""The original's README, its examples as they stand, with a real Redis where they have one."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

QUICK_START = """
import redis
from fastapi import FastAPI, Request
from idemptx import idempotent
from idemptx.backend import RedisBackend

app = FastAPI()
client = redis.Redis(host='localhost', port=6379, db=0)
redis_backend = RedisBackend(client)

@app.post('/orders')
@idempotent(storage_backend=redis_backend)
async def create_order(request: Request):
    return {'status': 'created'}
"""

ADVANCED_USAGE = """
@idempotent(
    storage_backend=redis_backend,
    key_ttl=60,
    wait_timeout=3.0,
    validate_signature=True,
)
"""

ASYNC_BACKEND = """
import redis.asyncio as aioredis
from idemptx.backend import AsyncRedisBackend

async_client = aioredis.Redis(host='localhost', port=6379, db=0)
async_backend = AsyncRedisBackend(async_client)
"""

IN_MEMORY_BACKEND = """
from idemptx.backend import InMemoryBackend

backend = InMemoryBackend()

@app.post('/example')
@idempotent(storage_backend=backend)
async def create_something(request: Request):
    return {'ok': True}
"""

KEY = {"Idempotency-Key": "4f6c-a1"}


@pytest.fixture
def run(redis_server: Any) -> Any:
    """Runs examples one after the other as if they stood in one module; Redis has another port."""
    names: dict[str, Any] = {"__name__": "example"}

    def execute(*examples: str) -> dict[str, Any]:
        for example in examples:
            source = example.replace("port=6379", f"port={redis_server.port}")
            exec(compile(source, "<README>", "exec"), names)
        return names

    yield execute
    if "client" in names:
        names["client"].close()


async def test_the_quick_start_executes_replays_and_refuses(
    run: Any, connect: Any, redis_server: Any
) -> None:
    async with connect(run(QUICK_START)["app"]) as client:
        first = await client.post("/orders", headers=KEY, json={"item": 1})
        again = await client.post("/orders", headers=KEY, json={"item": 1})
        other = await client.post("/orders", headers=KEY, json={"item": 2})
        none = await client.post("/orders", json={"item": 1})
    assert first.status_code == again.status_code == 200
    assert first.json() == {"status": "created"}
    assert again.content == first.content
    assert first.headers["x-idempotency-status"] == "new"
    assert again.headers["x-idempotency-status"] == "hit"
    assert first.headers["idempotency-key"] == again.headers["idempotency-key"] == "4f6c-a1"
    signature = first.headers["x-idempotency-signature"]
    assert signature == again.headers["x-idempotency-signature"]
    assert len(signature) >= 32
    assert (other.status_code, none.status_code) == (422, 400)
    assert other.headers["content-type"] == none.headers["content-type"]
    assert none.headers["content-type"] == "application/problem+json"
    assert none.json()["code"] == "missing-key"


async def test_the_quick_starts_records_are_in_redis_and_expire(
    run: Any, connect: Any, redis_server: Any
) -> None:
    async with connect(run(QUICK_START)["app"]) as client:
        await client.post("/orders", headers=KEY)
    with redis_server.connect() as client:
        names = client.keys("*")
        assert names
        assert all(name.startswith(b"idempotency:") for name in names)
        assert all(0 < client.ttl(name) <= 300 for name in names)
        assert not any(b"4f6c-a1" in name for name in names), "a raw key is in the store"


async def test_the_advanced_parameters_are_taken(run: Any, connect: Any, redis_server: Any) -> None:
    handler = textwrap.dedent(
        """
        async def create(request: Request):
            return {'status': 'created'}
        """
    )
    names = run(QUICK_START, "@app.post('/advanced')" + ADVANCED_USAGE.rstrip() + handler)
    async with connect(names["app"]) as client:
        answers = [await client.post("/advanced", headers=KEY) for _ in range(2)]
    assert [answer.headers["x-idempotency-status"] for answer in answers] == ["new", "hit"]
    with redis_server.connect() as client:
        (name,) = client.keys("*")
        assert 50 < client.ttl(name) <= 60


async def test_the_async_backend_is_taken(run: Any, connect: Any) -> None:
    route = """
@app.post('/async')
@idempotent(async_backend)
async def create(request: Request):
    return {'status': 'created'}
"""
    names = run(QUICK_START, ASYNC_BACKEND, route)
    async with connect(names["app"]) as client:
        answers = [await client.post("/async", headers=KEY) for _ in range(2)]
    assert [answer.headers["x-idempotency-status"] for answer in answers] == ["new", "hit"]
    await names["async_client"].aclose()


async def test_the_in_memory_backend_is_taken(run: Any, connect: Any) -> None:
    names = run(QUICK_START, IN_MEMORY_BACKEND)
    async with connect(names["app"]) as client:
        answers = [await client.post("/example", headers=KEY) for _ in range(2)]
    assert [answer.json() for answer in answers] == [{"ok": True}] * 2
    assert [answer.headers["x-idempotency-status"] for answer in answers] == ["new", "hit"]


async def test_what_its_limitations_forbade_works_now(run: Any, connect: Any) -> None:
    route = """
from pydantic import BaseModel

class Order(BaseModel):
    item: str

@app.post('/limited', response_model=Order, status_code=201)
@idempotent(storage_backend=backend)
def create(order: Order):
    return order
"""
    names = run(QUICK_START, IN_MEMORY_BACKEND, route)
    async with connect(names["app"]) as client:
        tries = [await client.post("/limited", headers=KEY, json={"item": "x"}) for _ in range(2)]
    assert [(answer.status_code, answer.json()) for answer in tries] == [(201, {"item": "x"})] * 2
    assert tries[1].headers["x-idempotency-status"] == "hit"


def test_the_modules_of_the_original_are_there() -> None:
    from idemptx import backend, decorator, exceptions  # noqa: PLC0415
    from idemptx.backend import base, memory, redis  # noqa: PLC0415

    assert decorator.idempotent
    assert exceptions.IdempotencyException
    assert base.StorageBackend
    assert base.AsyncStorageBackend
    assert memory.InMemoryBackend is backend.InMemoryBackend
    assert redis.RedisBackend is backend.RedisBackend
    assert redis.AsyncRedisBackend is backend.AsyncRedisBackend
