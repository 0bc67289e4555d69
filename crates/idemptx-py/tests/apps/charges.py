"""An application that charges in PostgreSQL, in the transaction that its records are settled in.

`TEST_SETTINGS`: `url`, `door`, and `options`; there is a route for each kind of connection.
A charge is a row of `charges`; a key that was charged twice would have two.
"""

import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

import asyncpg
import psycopg
import redis.asyncio
import sqlalchemy
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from idemptx import (
    IdempotencyMiddleware,
    IdempotentTransaction,
    current_execution,
    idempotent,
)
from idemptx.backend import PostgresBackend
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

PORT = int(os.environ["TEST_REDIS_PORT"])
SETTINGS = json.loads(os.environ["TEST_SETTINGS"])
URL = SETTINGS["url"]
ALCHEMY_URL = URL.replace("postgres://", "postgresql+{}://")
INSERT = "INSERT INTO charges (key) VALUES ({})"
OPTIONS = SETTINGS.get("options", {})

notes = redis.asyncio.Redis(port=PORT)
backend = PostgresBackend(URL)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await notes.rpush("test:started", str(os.getpid()))
    yield
    await notes.aclose()


app = FastAPI(lifespan=lifespan)


def key_of(request: Request) -> str:
    return request.headers["idempotency-key"].strip('"')


def psycopg_async() -> Any:
    return psycopg.AsyncConnection.connect(URL)


def psycopg_sync() -> Any:
    return psycopg.connect(URL)


def asyncpg_connection() -> Any:
    return asyncpg.connect(URL)


async_engine = create_async_engine(ALCHEMY_URL.format("asyncpg"), poolclass=sqlalchemy.NullPool)
psycopg_engine = create_async_engine(ALCHEMY_URL.format("psycopg"), poolclass=sqlalchemy.NullPool)
engine = sqlalchemy.create_engine(ALCHEMY_URL.format("psycopg"), poolclass=sqlalchemy.NullPool)

WAYS: dict[str, Any] = {
    "psycopg async": psycopg_async,
    "psycopg": psycopg_sync,
    "asyncpg": asyncpg_connection,
    "sqlalchemy async session": lambda: AsyncSession(async_engine),
    "sqlalchemy async connection": psycopg_engine.connect,
    "sqlalchemy session": lambda: Session(engine),
    "sqlalchemy connection": engine.connect,
}


def answer(key: str, status: int) -> JSONResponse:
    return JSONResponse({"charged": key, "pid": os.getpid()}, status)


def charging(way: str) -> Any:
    """The handler that charges in a connection of this kind."""
    transaction = IdempotentTransaction(WAYS[way])
    is_alchemy = way.startswith("sqlalchemy")
    parameter = "$1" if way == "asyncpg" else "%s"

    def insertion(key: str) -> tuple[Any, ...]:
        if is_alchemy:
            return sqlalchemy.text(INSERT.format(":key")), {"key": key}
        return INSERT.format(parameter), key if way == "asyncpg" else (key,)

    async def charge(
        request: Request,
        tx: Annotated[Any, Depends(transaction)],
        status: int = 201,
        hold: bool = False,
    ) -> JSONResponse:
        key = key_of(request)
        await tx.execute(*insertion(key))
        await notes.rpush(f"test:begun:{key}", "")
        if hold:
            await notes.blpop([f"test:finish:{key}"], timeout=20)
        if status == 0:
            raise RuntimeError("oops")
        return answer(key, status)

    def charge_blocking(
        request: Request, tx: Annotated[Any, Depends(transaction)], status: int = 201
    ) -> JSONResponse:
        key = key_of(request)
        tx.execute(*insertion(key))
        if status == 0:
            raise RuntimeError("oops")
        return answer(key, status)

    blocks = way in ("psycopg", "sqlalchemy session", "sqlalchemy connection")
    return charge_blocking if blocks else charge


async def charge_by_hand(
    request: Request, status: int = 201, forget: bool = False, fail: bool = False
) -> JSONResponse:
    """Charges without the dependency, in a separate transaction."""
    key, execution = key_of(request), current_execution()
    assert execution is not None
    response = answer(key, status)
    async with await psycopg.AsyncConnection.connect(URL) as connection:
        await connection.execute(INSERT.format("%s"), (key,))
        await execution.settle_in(connection, response)
        if fail:
            raise RuntimeError("oops")
        if forget:
            await connection.rollback()
    return response


routes = {f"/{number}/charges": charging(way) for number, way in enumerate(WAYS)}
routes["/by-hand"] = charge_by_hand
if SETTINGS.get("door") == "middleware":
    for path, handler in routes.items():
        app.post(path)(handler)
    app.add_middleware(IdempotencyMiddleware, storage_backend=backend, **OPTIONS)
else:
    for path, handler in routes.items():
        app.post(path)(idempotent(backend, **OPTIONS)(handler))
