"""A payment service in which a payment happens once, whatever happens on the way.

`REDIS_URL=redis://… PROVIDER_URL=https://… uvicorn payments:app`
"""

from __future__ import annotations

import logging
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import httpx
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from idemptx import current_execution, drain, idempotent
from idemptx.backend import from_url
from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

logger = logging.getLogger("payments")

if "REDIS_URL" not in os.environ:
    logger.warning("REDIS_URL is not set: payments are remembered in this process, until it ends!")
backend = from_url(os.environ.get("REDIS_URL", "memory:"))


class Payment(BaseModel):
    """What a customer asks for."""

    amount_cents: int = Field(gt=0)
    currency: Literal["EUR", "USD"]
    card: str


class Receipt(BaseModel):
    """What the customer gets, and gets again for every retry."""

    charge: str
    amount_cents: int


class Provider:
    """Whoever moves the money."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        """Over a client whose base is the provider's URL."""
        self._client = client

    async def charge(self, payment: Payment, key: str) -> str:
        """Charges the card once per key, and tells the charge's name."""
        answer = await self._client.post(
            "/charges", json=payment.model_dump(), headers={"Idempotency-Key": key}
        )
        if answer.status_code == httpx.codes.PAYMENT_REQUIRED:
            # An answer that will not change: it is stored, and a retry gets it again.
            raise HTTPException(402, "The card was declined.")
        # Anything else that is no success may have been a charge: it raises.
        return str(answer.raise_for_status().json()["id"])


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Connects to the provider; at the end lets payments under way be done first."""
    url = os.environ.get("PROVIDER_URL", "http://127.0.0.1:9000")
    async with httpx.AsyncClient(base_url=url, timeout=10) as client:
        app.state.provider = Provider(client)
        yield
        await drain()
    await backend.aclose()


def provider(request: Request) -> Provider:
    """The connection to the provider."""
    connected: Provider = request.app.state.provider
    return connected


def authenticate(
    request: Request, bearer: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]
) -> None:
    """Finds out whose request it is."""
    tenant = TENANTS.get(bearer.credentials)
    if tenant is None:
        raise HTTPException(401, "The token is unknown.")
    request.state.tenant = tenant


def tenant(request: Request) -> str:
    """Keys are counted per tenant: one tenant's keys mean nothing to another."""
    authenticated: str = request.state.tenant
    return authenticated


app = FastAPI(title="Payments", lifespan=lifespan)


@app.post("/payments", status_code=201, dependencies=[Depends(authenticate)])
@idempotent(
    backend,
    profile="payments",
    scope=tenant,
    # An execution that vanished, or raised, may have charged the card. The provider has the
    # derived key, so to execute again is safe; where that is not so, leave these two out.
    policy={"on_orphan": "reexecute", "on_panic": "release"},
)
async def pay(payment: Payment, provider: Annotated[Provider, Depends(provider)]) -> Receipt:
    """Charges the card."""
    execution = current_execution()
    assert execution is not None, "a key is required"  # noqa: S101
    charge = await provider.charge(payment, key=execution.derive("charge"))
    return Receipt(charge=charge, amount_cents=payment.amount_cents)


# In a real service: a verified JWT's claim, or a look-up of the API key's digest.
TENANTS = {"token-of-alice": "alice", "token-of-bob": "bob"}
