"""A FastAPI service that charges a card once, however often its client sends the request.

`PROVIDER=https://… uvicorn fastapi_app:app`, then `KEY=$(uuidgen)`, and twice:
`curl -i http://127.0.0.1:8000/payments -H "Idempotency-Key: $KEY" --json '{"cents": 700}'`
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
from fastapi import FastAPI, HTTPException
from idemptx import current_execution, drain, idempotent
from idemptx.backend import from_url
from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Several workers need a shared store: `sqlite:payments.db`, `redis://…` or `postgres://…`.
backend = from_url(os.environ.get("STORE", "memory:"))
provider = httpx.AsyncClient(base_url=os.environ.get("PROVIDER", "http://127.0.0.1:9000"))


class Payment(BaseModel):
    """The amount to charge."""

    cents: int = Field(gt=0)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Lets running payments finish before the process ends."""
    yield
    await drain()
    await backend.aclose()


app = FastAPI(lifespan=lifespan)


@app.post("/payments", status_code=201)
# The provider honours keys, so it is safe to execute again after a crash or an exception.
@idempotent(backend, policy={"on_orphan": "reexecute", "on_panic": "release"})
async def pay(payment: Payment) -> dict[str, str]:
    """Charges the card."""
    execution = current_execution()
    assert execution is not None, "a key is required"  # noqa: S101
    # The derived key is the same for every attempt at this payment.
    headers = {"Idempotency-Key": execution.derive("charge")}
    response = await provider.post("/charges", json=payment.model_dump(), headers=headers)
    if response.status_code == httpx.codes.PAYMENT_REQUIRED:
        raise HTTPException(402, "The card was declined.")  # stored: a retry gets it again
    return {"charge": str(response.raise_for_status().json()["id"])}
