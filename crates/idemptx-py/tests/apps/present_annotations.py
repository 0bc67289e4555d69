"""Handlers whose annotations are objects: no `from __future__ import annotations` here."""

from typing import Any

from fastapi import FastAPI
from idemptx import idempotent
from idemptx.backend import InMemoryBackend
from pydantic import BaseModel

app = FastAPI()
calls = 0


class Order(BaseModel):
    item: str


@app.post("/orders")
@idempotent(InMemoryBackend())
async def create_order(order: Order) -> dict[str, Any]:
    global calls  # noqa: PLW0603 - one application, one counter
    calls += 1
    return {**order.model_dump(), "calls": calls}
