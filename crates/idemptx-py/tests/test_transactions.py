"""Handlers' effects in PostgreSQL and their records are committed together or not at all."""

import asyncio
import contextlib
import os
import signal
import sqlite3
from collections import Counter
from typing import Annotated, Any

import asyncpg
import httpx
import psycopg
import pytest
import sqlalchemy
from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from idemptx import (
    IdempotentTransaction,
    LeaseLostException,
    current_execution,
    drain,
    idempotent,
)
from idemptx.backend import InMemoryBackend, PostgresBackend, SqliteBackend
from sqlalchemy.ext.asyncio import create_async_engine

WAYS = [
    "psycopg async",
    "psycopg",
    "asyncpg",
    "sqlalchemy async session",
    "sqlalchemy async connection",
    "sqlalchemy session",
    "sqlalchemy connection",
]
KILLS = int(os.environ.get("IDEMPTX_KILLS", "8"))
"""How many workers are killed in a run; the documentation tells of one with 100."""
KEY = {"Idempotency-Key": "k"}
ONE_EACH = httpx.Limits(max_keepalive_connections=0)
"""A server ends a connection on which a handler has failed."""


@pytest.fixture
def charged(postgres_server: Any) -> Any:
    """The keys that were charged, in a table of the application's."""
    postgres_server.ask("DROP TABLE IF EXISTS charges")
    postgres_server.ask("CREATE TABLE charges (id bigserial PRIMARY KEY, key text NOT NULL)")
    return lambda: [key for (key,) in postgres_server.ask("SELECT key FROM charges ORDER BY id")]


@pytest.fixture
def start(serve: Any, postgres_server: Any) -> Any:
    def start(**settings: Any) -> Any:
        return serve("charges:app", url=postgres_server.url, **settings)

    return start


@pytest.fixture
def notes(redis_server: Any) -> Any:
    with contextlib.closing(redis_server.connect()) as client:
        yield client


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("door", ["decorator", "middleware"])
def test_a_charge_and_its_record_are_one(start: Any, charged: Any, way: str, door: str) -> None:
    with start(way=way, door=door).connect(limits=ONE_EACH) as client:
        first = client.post("/charges", headers=KEY)
        assert first.status_code == 201, first.text
        again = client.post("/charges", headers=KEY)
        assert again.headers["idempotent-replayed"] == "true"
        assert again.content == first.content
        assert charged() == ["k"]
        # What is no success is rolled back: an answer that is kept, one that is not, and none.
        for status, answered in ((422, 422), (503, 503), (0, 500)):
            headers = {"Idempotency-Key": f"failing-{status}"}
            refused = client.post(f"/charges?status={status}", headers=headers)
            assert refused.status_code == answered
        assert charged() == ["k"]
        kept = client.post("/charges?status=422", headers={"Idempotency-Key": "failing-422"})
        assert kept.headers["idempotent-replayed"] == "true"
        for status in (503, 0):
            headers = {"Idempotency-Key": f"failing-{status}"}
            assert client.post("/charges", headers=headers).status_code == 201
    assert charged() == ["k", "failing-503", "failing-0"]


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


@pytest.mark.parametrize("way", ["psycopg async", "asyncpg", "sqlalchemy async session"])
def test_an_owner_that_was_stopped_commits_nothing(
    start: Any, charged: Any, effects: Any, way: str
) -> None:
    """After its lease has lapsed it rolls back, and answers what the other has charged."""
    options = {"policy": {"lease_ms": 400}}
    stopped, other = start(way=way, options=options), start(way=way, options=options)

    async def play() -> tuple[Any, Any]:
        async with stopped.connect_async() as first, other.connect_async() as second:
            late = asyncio.create_task(first.post("/charges?hold=true", headers=KEY))
            await asyncio.to_thread(effects.await_begin, "k")
            (pid,) = stopped.pids
            os.kill(pid, signal.SIGSTOP)
            # One for each, in the order in which they ask.
            effects.finish("k", 2)
            try:
                winner = await second.post("/charges?hold=true", headers=KEY)
                while winner.status_code == 409:
                    await asyncio.sleep(0.05)
                    winner = await second.post("/charges?hold=true", headers=KEY)
            finally:
                os.kill(pid, signal.SIGCONT)
            return winner, await late

    winner, late = asyncio.run(play())
    assert winner.status_code == 201
    assert late.status_code == 409 or late.content == winner.content
    assert charged() == ["k"]


def test_killed_workers_leave_as_many_charges_as_keys(start: Any, charged: Any, notes: Any) -> None:
    """Whenever a worker dies, the charge is there together with its record, or neither is."""
    options = {"policy": {"lease_ms": 500}, "wait_timeout": 2}
    server = start(workers=3, options=options)
    keys: list[str] = []
    statuses: Counter[int] = Counter()

    async def charge(client: httpx.AsyncClient, key: str) -> None:
        body = None
        while body is None:
            with contextlib.suppress(httpx.TransportError):
                answer = await client.post("/charges", headers={"Idempotency-Key": key})
                statuses[answer.status_code] += 1
                assert answer.status_code in {201, 409, 503}, answer.text
                body = answer.content if answer.status_code == 201 else None
            await asyncio.sleep(0.01)
        with contextlib.suppress(httpx.TransportError):
            again = await client.post("/charges", headers={"Idempotency-Key": key})
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


# What can go wrong on the way to the commit


@pytest.fixture
async def road(postgres_server: Any) -> Any:
    """A connection to the server on which a commit may be lost, or its answer."""
    proxy = _Road(postgres_server.port)
    await proxy.open()
    yield proxy
    await proxy.close()


class _Road:
    """A proxy to the server that can cut a connection at the commit of a settled record."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.cuts = ""
        self._settles = False
        self._ends: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"postgres://postgres@127.0.0.1:{port}/postgres"

    async def close(self) -> None:
        self._server.close()
        await asyncio.gather(*self._ends)

    async def _serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._ends.add(task)
        far, onward = await asyncio.open_connection("127.0.0.1", self._port)
        ways = [
            asyncio.create_task(self._pass_on(near, onward)),
            asyncio.create_task(self._pass_back(far, back)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for writer in (onward, back):
            writer.close()
        await asyncio.gather(
            *ways, onward.wait_closed(), back.wait_closed(), return_exceptions=True
        )

    async def _pass_on(self, near: asyncio.StreamReader, onward: asyncio.StreamWriter) -> None:
        while data := await near.read(65536):
            # Some drivers commit already while they connect.
            self._settles = self._settles or b"settled AS" in data
            if self._settles and b"COMMIT" in data and self.cuts == "commit":
                return
            onward.write(data)

    async def _pass_back(self, far: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        while data := await far.read(65536):
            if self._settles and b"COMMIT" in data and self.cuts == "answer":
                return
            back.write(data)


CONNECTS: dict[str, Any] = {
    "psycopg": lambda url: lambda: psycopg.AsyncConnection.connect(url),
    "asyncpg": lambda url: lambda: asyncpg.connect(url),
    "sqlalchemy": lambda url: (
        create_async_engine(
            url.replace("postgres://", "postgresql+asyncpg://"), poolclass=sqlalchemy.NullPool
        ).connect
    ),
}


@pytest.mark.anyio
@pytest.mark.parametrize("driver", CONNECTS)
async def test_a_commit_whose_answer_is_lost_counts(
    connect: Any, postgres_server: Any, charged: Any, road: Any, driver: str
) -> None:
    backend = PostgresBackend(postgres_server.url)
    app = _charging(backend, CONNECTS[driver](road.url))
    road.cuts = "answer"
    async with connect(app) as client:
        first = await client.post("/charges", headers=KEY)
        road.cuts = ""
        again = await client.post("/charges", headers=KEY)
    assert (first.status_code, first.json()) == (201, {"charge": 1})
    assert again.content == first.content
    assert charged() == ["k"]
    await _end(backend)


@pytest.mark.anyio
@pytest.mark.parametrize("driver", CONNECTS)
async def test_a_commit_that_is_lost_is_no_success(
    connect: Any, postgres_server: Any, charged: Any, road: Any, driver: str
) -> None:
    backend = PostgresBackend(postgres_server.url)
    app = _charging(backend, CONNECTS[driver](road.url))
    road.cuts = "commit"
    async with connect(app) as client:
        first = await client.post("/charges", headers=KEY)
        assert (first.status_code, first.json()["code"]) == (503, "store-unavailable")
        assert charged() == []
        road.cuts = ""
        again = await client.post("/charges", headers=KEY)
    assert (again.status_code, again.json()) == (201, {"charge": 2})
    assert charged() == ["k"]
    await _end(backend)


@pytest.mark.anyio
async def test_a_commit_that_the_database_refuses_is_no_success(
    connect: Any, postgres_server: Any, charged: Any, caplog: Any
) -> None:
    postgres_server.ask(
        "ALTER TABLE charges ADD CONSTRAINT once UNIQUE (key) DEFERRABLE INITIALLY DEFERRED"
    )
    postgres_server.ask("INSERT INTO charges (key) VALUES ('k')")
    backend = PostgresBackend(postgres_server.url)
    app = _charging(backend, CONNECTS["psycopg"](postgres_server.url))
    async with connect(app) as client:
        answer = await client.post("/charges", headers=KEY)
    assert answer.status_code == 503
    assert "once" in caplog.text
    assert charged() == ["k"]
    await _end(backend)


@pytest.mark.anyio
async def test_a_database_that_is_away_executes_nothing_and_frees_the_key(
    connect: Any, postgres_server: Any, charged: Any
) -> None:
    backend = PostgresBackend(postgres_server.url)
    urls = ["postgres://postgres@127.0.0.1:1/postgres", postgres_server.url]
    app = _charging(
        backend,
        lambda: psycopg.AsyncConnection.connect(urls.pop(0)),
        profile="payments",
        scope="shared",
    )
    async with connect(app) as client:
        away = await client.post("/charges", headers=KEY)
        assert away.status_code == 503
        assert (await client.post("/charges", headers=KEY)).status_code == 201
    assert charged() == ["k"]
    await _end(backend)


@pytest.mark.anyio
async def test_a_handler_that_commits_by_itself_is_found_out(
    connect: Any, postgres_server: Any, charged: Any, caplog: Any
) -> None:
    backend = PostgresBackend(postgres_server.url)
    transaction = IdempotentTransaction(CONNECTS["psycopg"](postgres_server.url))
    app = FastAPI()

    @app.post("/charges")
    @idempotent(backend)
    async def charge(tx: Annotated[Any, Depends(transaction)]) -> dict[str, int]:
        await tx.execute("INSERT INTO charges (key) VALUES ('k')")
        await tx.commit()
        return {"charge": 1}

    async with connect(app) as client:
        assert (await client.post("/charges", headers=KEY)).status_code == 503
    assert "was not committed" in caplog.text
    assert charged() == ["k"]
    await _end(backend)


@pytest.mark.anyio
async def test_an_operation_that_was_taken_over_is_not_settled(
    connect: Any, postgres_server: Any, charged: Any
) -> None:
    backend = PostgresBackend(postgres_server.url)
    raised: list[Exception] = []
    app = FastAPI()

    @app.post("/charges")
    @idempotent(backend)
    async def charge() -> JSONResponse:
        execution = current_execution()
        assert execution is not None
        postgres_server.ask("DELETE FROM idemptx.records")
        try:
            async with await psycopg.AsyncConnection.connect(postgres_server.url) as tx:
                await tx.execute("INSERT INTO charges (key) VALUES ('k')")
                return await execution.settle_in(tx, JSONResponse({"charge": 1}))
        except LeaseLostException as error:
            raised.append(error)
            raise

    async with connect(app) as client:
        assert (await client.post("/charges", headers=KEY)).status_code == 500
    assert len(raised) == 1
    assert charged() == []
    await _end(backend)


@pytest.mark.anyio
async def test_a_streamed_answer_is_committed_too(
    connect: Any, postgres_server: Any, charged: Any
) -> None:
    backend = PostgresBackend(postgres_server.url)
    transaction = IdempotentTransaction(CONNECTS["asyncpg"](postgres_server.url))
    app = FastAPI()

    @app.post("/charges")
    @idempotent(backend, policy={"response_bytes_max": 1000})
    async def charge(
        tx: Annotated[Any, Depends(transaction)], long: bool = False
    ) -> StreamingResponse:
        await tx.execute("INSERT INTO charges (key) VALUES ('k')")
        return StreamingResponse(iter([b"some", b"thing", b"x" * 2000 if long else b""]))

    async with connect(app) as client:
        assert (await client.post("/charges", headers=KEY)).content == b"something"
        assert (await client.post("/charges", headers=KEY)).content == b"something"
        headers = {"Idempotency-Key": "long"}
        assert len((await client.post("/charges?long=1", headers=headers)).content) == 2009
        again = await client.post("/charges?long=1", headers=headers)
        assert (again.status_code, again.json()["code"]) == (409, "result-unavailable")
    assert charged() == ["k", "k"]
    await _end(backend)


# What cannot be meant


@pytest.mark.anyio
async def test_without_a_key_there_is_no_transaction(
    connect: Any, postgres_server: Any, charged: Any
) -> None:
    backend = PostgresBackend(postgres_server.url)
    app = _charging(backend, CONNECTS["psycopg"](postgres_server.url), required=False)
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
    app = FastAPI()

    @app.post("/charges")
    @idempotent(backend)
    async def charge() -> JSONResponse:
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
    await _end(backend)


@pytest.mark.anyio
async def test_in_shadow_mode_there_is_no_transaction(
    connect: Any, postgres_server: Any, charged: Any
) -> None:
    backend = PostgresBackend(postgres_server.url)
    opening = CONNECTS["psycopg"](postgres_server.url)
    app = _charging(backend, opening, policy={"mode": "shadow"})
    async with connect(app) as client:
        assert (await client.post("/charges", headers=KEY)).status_code == 500
    assert charged() == []
    await _end(backend)


@pytest.mark.anyio
async def test_connections_that_cannot_settle_say_why(
    connect: Any, postgres_server: Any, charged: Any
) -> None:
    backend = PostgresBackend(postgres_server.url)
    raised: list[str] = []
    app = FastAPI()

    @app.post("/charges")
    @idempotent(backend)
    async def charge() -> JSONResponse:
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
    await _end(backend)


async def _end(backend: Any) -> None:
    """Drains first: connections returned after an answer would be cut with the loop."""
    assert await drain(10)
    await backend.aclose()


def _charging(backend: Any, opening: Any, **options: Any) -> FastAPI:
    transaction = IdempotentTransaction(opening)
    app = FastAPI()
    charges: list[int] = []

    @app.post("/charges", status_code=201)
    @idempotent(backend, **options)
    async def charge(tx: Annotated[Any, Depends(transaction)]) -> dict[str, int]:
        charges.append(1)
        insert: Any = "INSERT INTO charges (key) VALUES ('k')"
        is_alchemy = type(tx).__module__.startswith("sqlalchemy")
        await tx.execute(sqlalchemy.text(insert) if is_alchemy else insert)
        return {"charge": len(charges)}

    return app
