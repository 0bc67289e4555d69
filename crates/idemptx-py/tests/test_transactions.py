"""Handlers' effects in PostgreSQL and their records are committed together or not at all."""

import asyncio
import contextlib
import os
import signal
import sqlite3
from collections import Counter
from typing import Any

import asyncpg
import httpx
import pytest
import sqlalchemy
from charging import charging, connect_psycopg, end
from fastapi.responses import JSONResponse
from idemptx import (
    current_execution,
)
from idemptx.backend import InMemoryBackend, PostgresBackend, SqliteBackend
from protected import KEY, protected
from protocol import PATIENT

WAYS = [
    "psycopg async",
    "psycopg",
    "asyncpg",
    "sqlalchemy async session",
    "sqlalchemy async connection",
    "sqlalchemy session",
    "sqlalchemy connection",
]
KILLS = int(os.environ.get("IDEMPTX_KILLS", "4"))
"""How many workers are killed in a run; the documentation tells of one with 100."""
ONE_EACH = httpx.Limits(max_keepalive_connections=0)
"""A server ends a connection on which a handler has failed."""


@pytest.fixture
def start(serve: Any, postgres_server: Any) -> Any:
    def start(**settings: Any) -> Any:
        return serve("charges:app", url=postgres_server.url, **settings)

    return start


@pytest.fixture
def notes(redis_server: Any) -> Any:
    with contextlib.closing(redis_server.connect()) as client:
        yield client


@pytest.mark.parametrize("door", ["decorator", "middleware"])
def test_a_charge_and_its_record_are_one(start: Any, charged: Any, door: str) -> None:
    server = start(door=door)
    for way in WAYS:
        with server.connect(limits=ONE_EACH) as client:
            _charge_and_fail(client, charged, way)


def _charge_and_fail(client: httpx.Client, charged: Any, way: str) -> None:
    path, before = _path(way), charged()

    def key(name: str) -> dict[str, str]:
        return {"Idempotency-Key": f"{way} {name}".replace(" ", "-")}

    def now() -> list[str]:
        return [it.removeprefix(key("")["Idempotency-Key"]) for it in charged()[len(before) :]]

    first = client.post(path, headers=key("k"))
    assert first.status_code == 201, first.text
    again = client.post(path, headers=key("k"))
    assert again.headers["idempotent-replayed"] == "true"
    assert again.content == first.content
    assert now() == ["k"], way
    # What is no success is rolled back: an answer that is kept, one that is not, and none.
    for status, answered in ((422, 422), (503, 503), (0, 500)):
        refused = client.post(f"{path}?status={status}", headers=key(f"failing-{status}"))
        assert refused.status_code == answered, way
    assert now() == ["k"], way
    kept = client.post(f"{path}?status=422", headers=key("failing-422"))
    assert kept.headers["idempotent-replayed"] == "true"
    for status in (503, 0):
        assert client.post(path, headers=key(f"failing-{status}")).status_code == 201
    assert now() == ["k", "failing-503", "failing-0"], way


def _path(way: str) -> str:
    return f"/{WAYS.index(way)}/charges"


@pytest.mark.parametrize("door", ["decorator", "middleware"])
def test_a_transaction_of_the_applications_own_settles_too(
    start: Any, charged: Any, door: str
) -> None:
    with start(door=door).connect(limits=ONE_EACH) as client:
        first = client.post("/by-hand", headers=KEY)
        again = client.post("/by-hand", headers=KEY)
        assert (first.status_code, again.content) == (201, first.content)
        assert charged() == ["k"]
        # Without its commit there is no effect, and so no success.
        headers = {"Idempotency-Key": "forgotten"}
        assert client.post("/by-hand?forget=true", headers=headers).status_code == 503
        assert client.post("/by-hand?forget=true", headers=headers).status_code == 503
        assert charged() == ["k"]
        headers = {"Idempotency-Key": "failed"}
        assert client.post("/by-hand?fail=true", headers=headers).status_code == 500
        assert charged() == ["k"]


def test_an_owner_that_was_stopped_commits_nothing(start: Any, charged: Any, effects: Any) -> None:
    """After its lease has lapsed it rolls back, and answers what the other has charged."""
    options = {"policy": {**PATIENT, "lease_ms": 1000}}
    stopped, other = start(options=options), start(options=options)
    ways = ["psycopg async", "asyncpg", "sqlalchemy async session"]
    for number, way in enumerate(ways, 1):
        winner, late = asyncio.run(_take_over(stopped, other, effects, way))
        assert winner.status_code == 201, way
        assert late.status_code == 409 or late.content == winner.content, way
        assert len(charged()) == number, way


async def _take_over(stopped: Any, other: Any, effects: Any, way: str) -> tuple[Any, Any]:
    """Stops one server in its handler until another has answered."""
    path, key = f"{_path(way)}?hold=true", way.replace(" ", "-")
    headers = {"Idempotency-Key": key}
    async with stopped.connect_async() as first, other.connect_async() as second:
        late = asyncio.create_task(first.post(path, headers=headers))
        await asyncio.to_thread(effects.await_begin, key)
        (pid,) = stopped.pids
        os.kill(pid, signal.SIGSTOP)
        # One for each, in the order in which they ask.
        effects.finish(key, 2)
        try:
            winner = await second.post(path, headers=headers)
            while winner.status_code == 409:
                await asyncio.sleep(0.05)
                winner = await second.post(path, headers=headers)
        finally:
            os.kill(pid, signal.SIGCONT)
        return winner, await late


def test_killed_workers_leave_as_many_charges_as_keys(start: Any, charged: Any, notes: Any) -> None:
    """Whenever a worker dies, the charge is there together with its record, or neither is."""
    options = {"policy": {"lease_ms": 500}, "wait_timeout": 2}
    server = start(workers=3, options=options)
    keys: list[str] = []
    path = _path("psycopg async")
    statuses: Counter[int] = Counter()

    async def charge(client: httpx.AsyncClient, key: str) -> None:
        body = None
        while body is None:
            with contextlib.suppress(httpx.TransportError):
                answer = await client.post(path, headers={"Idempotency-Key": key})
                statuses[answer.status_code] += 1
                assert answer.status_code in {201, 409, 503}, answer.text
                body = answer.content if answer.status_code == 201 else None
            await asyncio.sleep(0.01)
        with contextlib.suppress(httpx.TransportError):
            again = await client.post(path, headers={"Idempotency-Key": key})
            assert again.status_code == 503 or again.content == body

    async def kill() -> None:
        """Kills a worker at a time, never the only one, so that there is always one at work."""
        alive = set(server.pids)
        killed = 0
        while killed < KILLS:
            while (started := notes.lpop("test:started")) is not None:
                alive.add(int(started))
            if len(alive) > 1:
                os.kill(alive.pop(), signal.SIGKILL)
                killed += 1
            await asyncio.sleep(0.05)

    async def play() -> None:
        killing = asyncio.create_task(kill())

        async def client() -> None:
            async with server.connect_async() as http:
                while not killing.done():
                    keys.append(f"key-{len(keys)}")
                    await charge(http, keys[-1])

        await asyncio.gather(killing, *(client() for _ in range(8)))

    asyncio.run(play())
    assert len(keys) > KILLS, statuses
    assert Counter(charged()) == dict.fromkeys(keys, 1), statuses


# What cannot be meant


@pytest.mark.anyio
async def test_without_a_key_there_is_no_transaction(
    connect: Any, postgres_server: Any, charged: Any
) -> None:
    backend = PostgresBackend(postgres_server.url)
    app = charging(backend, connect_psycopg(postgres_server.url), required=False)
    async with connect(app) as client:
        assert (await client.post("/charges")).status_code == 400
    assert charged() == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda _: InMemoryBackend(), "use PostgresBackend"),
        (lambda folder: SqliteBackend(folder / "records.db"), "two copies of SQLite"),
    ],
)
async def test_other_backends_say_what_to_do(
    connect: Any, tmp_path: Any, make: Any, advice: str
) -> None:
    backend = make(tmp_path)
    raised: list[str] = []

    @protected(backend, path="/charges")
    async def app() -> JSONResponse:
        execution = current_execution()
        assert execution is not None
        response = JSONResponse({})
        try:
            execution.settle_in(None, response)
        except TypeError as error:
            raised.append(str(error))
        return response

    async with connect(app) as client:
        assert (await client.post("/charges", headers=KEY)).status_code == 200
    assert advice in raised[0]
    await end(backend)


@pytest.mark.anyio
async def test_in_shadow_mode_there_is_no_transaction(
    connect: Any, postgres_server: Any, charged: Any
) -> None:
    backend = PostgresBackend(postgres_server.url)
    opening = connect_psycopg(postgres_server.url)
    app = charging(backend, opening, policy={"mode": "shadow"})
    async with connect(app) as client:
        assert (await client.post("/charges", headers=KEY)).status_code == 500
    assert charged() == []
    await end(backend)


@pytest.mark.anyio
async def test_connections_that_cannot_settle_say_why(
    connect: Any, postgres_server: Any, charged: Any
) -> None:
    backend = PostgresBackend(postgres_server.url)
    raised: list[str] = []

    @protected(backend, path="/charges")
    async def app() -> JSONResponse:
        execution = current_execution()
        assert execution is not None
        response = JSONResponse({})
        sqlite_engine = sqlalchemy.create_engine("sqlite://")
        alchemy_url = postgres_server.url.replace("postgres://", "postgresql+psycopg://")
        by_itself = sqlalchemy.create_engine(
            alchemy_url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
        )
        pg = await asyncpg.connect(postgres_server.url)
        with (
            contextlib.closing(sqlite3.connect(":memory:")) as lite,
            sqlite_engine.connect() as alchemy_lite,
            by_itself.connect() as autocommitting,
            postgres_server.connect() as psycopg_autocommitting,
        ):
            for connection in (
                lite,
                alchemy_lite,
                autocommitting,
                psycopg_autocommitting,
                pg,
                object(),
            ):
                with pytest.raises((TypeError, RuntimeError)) as refused:
                    execution.settle_in(connection, response)
                raised.append(str(refused.value))
        await pg.close()
        sqlite_engine.dispose()
        return response

    async with connect(app) as client:
        assert (await client.post("/charges", headers=KEY)).status_code == 200
    for text, advice in zip(
        raised,
        ["two copies", "two copies", "in no transaction", "in no transaction",
         "in no transaction", "psycopg 3 or asyncpg"],
        strict=True,
    ):  # fmt: skip
        assert advice in text
    await end(backend)
