"""Faults on the way to a commit."""

import asyncio
import contextlib
from typing import Annotated, Any

import asyncpg
import psycopg
import pytest
import sqlalchemy
from charging import charging, connect_psycopg, end
from fastapi import Depends
from fastapi.responses import JSONResponse, StreamingResponse
from idemptx import (
    IdempotentTransaction,
    LeaseLostException,
    current_execution,
)
from idemptx.backend import PostgresBackend
from protected import KEY, protected
from sqlalchemy.ext.asyncio import create_async_engine


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
    "psycopg": connect_psycopg,
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
    app = charging(backend, CONNECTS[driver](road.url))
    road.cuts = "answer"
    async with connect(app) as client:
        first = await client.post("/charges", headers=KEY)
        road.cuts = ""
        again = await client.post("/charges", headers=KEY)
    assert (first.status_code, first.json()) == (201, {"charge": 1})
    assert again.content == first.content
    assert charged() == ["k"]
    await end(backend)


@pytest.mark.anyio
@pytest.mark.parametrize("driver", CONNECTS)
async def test_a_commit_that_is_lost_is_no_success(
    connect: Any, postgres_server: Any, charged: Any, road: Any, driver: str
) -> None:
    backend = PostgresBackend(postgres_server.url)
    app = charging(backend, CONNECTS[driver](road.url))
    road.cuts = "commit"
    async with connect(app) as client:
        first = await client.post("/charges", headers=KEY)
        assert (first.status_code, first.json()["code"]) == (503, "store-unavailable")
        assert charged() == []
        road.cuts = ""
        again = await client.post("/charges", headers=KEY)
    assert (again.status_code, again.json()) == (201, {"charge": 2})
    assert charged() == ["k"]
    await end(backend)


@pytest.mark.anyio
async def test_a_commit_that_the_database_refuses_is_no_success(
    connect: Any, postgres_server: Any, charged: Any, caplog: Any
) -> None:
    postgres_server.ask(
        "ALTER TABLE charges ADD CONSTRAINT once UNIQUE (key) DEFERRABLE INITIALLY DEFERRED"
    )
    postgres_server.ask("INSERT INTO charges (key) VALUES ('k')")
    backend = PostgresBackend(postgres_server.url)
    app = charging(backend, CONNECTS["psycopg"](postgres_server.url))
    async with connect(app) as client:
        answer = await client.post("/charges", headers=KEY)
    assert answer.status_code == 503
    assert "once" in caplog.text
    assert charged() == ["k"]
    await end(backend)


@pytest.mark.anyio
async def test_a_database_that_is_away_executes_nothing_and_frees_the_key(
    connect: Any, postgres_server: Any, charged: Any
) -> None:
    backend = PostgresBackend(postgres_server.url)
    urls = ["postgres://postgres@127.0.0.1:1/postgres", postgres_server.url]
    app = charging(
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
    await end(backend)


@pytest.mark.anyio
async def test_a_handler_that_commits_by_itself_is_found_out(
    connect: Any, postgres_server: Any, charged: Any, caplog: Any
) -> None:
    backend = PostgresBackend(postgres_server.url)
    transaction = IdempotentTransaction(CONNECTS["psycopg"](postgres_server.url))

    @protected(backend, path="/charges")
    async def app(tx: Annotated[Any, Depends(transaction)]) -> dict[str, int]:
        await tx.execute("INSERT INTO charges (key) VALUES ('k')")
        await tx.commit()
        return {"charge": 1}

    async with connect(app) as client:
        assert (await client.post("/charges", headers=KEY)).status_code == 503
    assert "was not committed" in caplog.text
    assert charged() == ["k"]
    await end(backend)


@pytest.mark.anyio
async def test_what_was_settled_is_the_answer_although_the_handler_returns_another(
    connect: Any, postgres_server: Any, charged: Any
) -> None:
    backend = PostgresBackend(postgres_server.url)

    @protected(backend, path="/charges")
    async def app() -> JSONResponse:
        execution = current_execution()
        assert execution is not None
        async with await psycopg.AsyncConnection.connect(postgres_server.url) as tx:
            await tx.execute("INSERT INTO charges (key) VALUES ('k')")
            await execution.settle_in(tx, JSONResponse({"charge": 1}))
        return JSONResponse({"charge": 2})

    async with connect(app) as client:
        tries = [await client.post("/charges", headers=KEY) for _ in range(2)]
    assert [answer.json() for answer in tries] == [{"charge": 1}] * 2
    assert charged() == ["k"]
    await end(backend)


@pytest.mark.anyio
async def test_an_operation_that_was_taken_over_is_not_settled(
    connect: Any, postgres_server: Any, charged: Any
) -> None:
    backend = PostgresBackend(postgres_server.url)
    raised: list[Exception] = []

    @protected(backend, path="/charges")
    async def app() -> JSONResponse:
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
    await end(backend)


@pytest.mark.anyio
async def test_a_streamed_answer_is_committed_too(
    connect: Any, postgres_server: Any, charged: Any
) -> None:
    backend = PostgresBackend(postgres_server.url)
    transaction = IdempotentTransaction(CONNECTS["asyncpg"](postgres_server.url))

    @protected(backend, path="/charges", policy={"response_bytes_max": 1000})
    async def app(
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
    await end(backend)


BROKEN = sqlalchemy.text("SELECT 1 / 0")
SECRET = {"card": "4111111111111111"}


@pytest.mark.anyio
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "blocking psycopg"])
async def test_no_log_of_a_settlement_through_sqlalchemy_shows_the_response(
    connect: Any, postgres_server: Any, caplog: Any, driver: str
) -> None:
    is_blocking = driver.startswith("blocking")
    make = sqlalchemy.create_engine if is_blocking else create_async_engine
    url = alchemy_url(postgres_server, driver.removeprefix("blocking "))
    engine = make(url, poolclass=sqlalchemy.NullPool)
    backend, opened = PostgresBackend(postgres_server.url), IdempotentTransaction(engine.connect)

    async def pay(tx: Annotated[Any, Depends(opened)]) -> Any:
        with contextlib.suppress(sqlalchemy.exc.DBAPIError):
            await tx.execute(BROKEN)
        return SECRET

    def pay_blocking(tx: Annotated[Any, Depends(opened)]) -> Any:
        with contextlib.suppress(sqlalchemy.exc.DBAPIError):
            tx.execute(BROKEN)
        return SECRET

    app = protected(backend)(pay_blocking if is_blocking else pay)
    async with connect(app) as client:
        answer = await client.post("/orders", headers=KEY)
    await end(backend)
    assert answer.status_code == 503
    assert "current transaction is aborted" in caplog.text
    assert SECRET["card"] not in caplog.text


@pytest.mark.anyio
async def test_no_exception_of_settle_in_shows_the_response(
    connect: Any, postgres_server: Any
) -> None:
    engine = create_async_engine(
        alchemy_url(postgres_server, "psycopg"), poolclass=sqlalchemy.NullPool
    )
    backend = PostgresBackend(postgres_server.url)
    raised: list[str] = []

    @protected(backend)
    async def app() -> Any:
        execution = current_execution()
        assert execution is not None
        async with engine.connect() as tx:
            with contextlib.suppress(sqlalchemy.exc.DBAPIError):
                await tx.execute(BROKEN)
            try:
                await execution.settle_in(tx, JSONResponse(SECRET))
            except sqlalchemy.exc.DBAPIError as error:
                raised.append(str(error))
        return {}

    async with connect(app) as client:
        await client.post("/orders", headers=KEY)
    await end(backend)
    assert "current transaction is aborted" in raised[0]
    assert SECRET["card"] not in raised[0]


def alchemy_url(server: Any, driver: str) -> str:
    url: str = server.url
    return url.replace("postgres://", f"postgresql+{driver}://")
