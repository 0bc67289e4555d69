"""An application that charges in a transaction, for the tests of what ends with it."""
# Annotations are read at run time by FastAPI:

from typing import Annotated, Any

import psycopg
import sqlalchemy
from fastapi import Depends, FastAPI
from idemptx import IdempotentTransaction, drain, idempotent


def connect_psycopg(url: str) -> Any:
    return lambda: psycopg.AsyncConnection.connect(url)


async def end(backend: Any) -> None:
    """Drains first: connections returned after an answer would be cut with the loop."""
    assert await drain(10)
    await backend.aclose()


def charging(backend: Any, opening: Any, **options: Any) -> FastAPI:
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
