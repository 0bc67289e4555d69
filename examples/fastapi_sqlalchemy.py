"""Orders in PostgreSQL through SQLAlchemy, exactly once.

The order and the record of its request are committed in one transaction, so that no crash can
leave one without the other.

`DATABASE=postgres://app@localhost/shop uvicorn fastapi_sqlalchemy:app`, then `KEY=$(uuidgen)`, and
twice: `curl -i http://127.0.0.1:8000/orders -H "Idempotency-Key: $KEY" --json '{"item": "tea"}'`
"""

import os
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from idemptx import IdempotentTransaction, idempotent
from idemptx.backend import from_url
from pydantic import BaseModel
from sqlalchemy import String
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

url = os.environ.get("DATABASE", "postgres://app@127.0.0.1/shop")
engine = create_async_engine(url.replace("postgres://", "postgresql+asyncpg://"))
# The records have to be in the same database as the orders.
backend = from_url(url)
transaction = IdempotentTransaction(async_sessionmaker(engine))

app = FastAPI()


class Base(DeclarativeBase):
    """The tables."""


class Order(Base):
    """One order."""

    __tablename__ = "orders"
    number: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(String(80))


class Wish(BaseModel):
    """An item to order."""

    item: str


@app.post("/orders", status_code=201)
@idempotent(backend)
async def take(
    wish: Wish, session: Annotated[AsyncSession, Depends(transaction)]
) -> dict[str, int]:
    """Inserts the order; the decorator commits once there is a response."""
    order = Order(item=wish.item)
    session.add(order)
    await session.flush()
    if not wish.item:
        raise HTTPException(422, "Order something.")  # rolls the transaction back
    return {"order": order.number}
