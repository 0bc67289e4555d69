"""The application that the benchmark measures, served through one of several front doors.

One handler does next to nothing, so that everything else shows; one does what handlers usually do.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Receive, Scope, Send

Protect = Callable[[Callable[..., Any]], Callable[..., Any]]

# As the Rust benchmark's.
ORDER = {
    "id": "o_5b1f0c7a44d2",
    "status": "created",
    "customer": "c_81f3a90b2e",
    "currency": "EUR",
    "total_cents": 1280,
    "created": "2026-01-15T09:30:00Z",
    "lines": [
        {"sku": "tea-earl-grey-250", "count": 2, "cents": 450, "total_cents": 900},
        {"sku": "cake-carrot", "count": 1, "cents": 380, "total_cents": 380},
    ],
    "links": {"self": "/orders/1"},
}


class Address(BaseModel):
    street: str
    city: str
    country: str = Field(min_length=2, max_length=2)


class Checkout(BaseModel):
    customer: str
    currency: str = Field(pattern="^[A-Z]{3}$")
    sku: str
    count: int = Field(gt=0)
    cents: int = Field(ge=0)
    discount: float = 0.0
    note: str | None = None
    gift: bool = False
    tags: list[str] = []
    address: Address


class Receipt(BaseModel):
    id: str
    customer: str
    total_cents: int
    address: Address
    tags: list[str]


def customer(user_agent: Annotated[str, Header()] = "") -> str:
    """A dependency, as most handlers have one."""
    return user_agent or "somebody"


def application(protect: Protect) -> FastAPI:
    app = FastAPI()
    app.state.executions = 0

    @app.post("/orders")
    @protect
    async def order(request: Request) -> JSONResponse:
        await request.body()
        app.state.executions += 1
        return JSONResponse(ORDER, 201)

    @app.post("/slow")
    @protect
    async def slow(request: Request) -> JSONResponse:
        await asyncio.sleep(int(request.headers["x-millis"]) / 1000)
        return JSONResponse(ORDER, 201)

    @app.post("/checkout", status_code=201, response_model=Receipt)
    @protect
    async def checkout(wish: Checkout, who: Annotated[str, Depends(customer)]) -> Receipt:
        return Receipt(
            id=f"r_{who}",
            customer=wish.customer,
            total_cents=wish.count * wish.cents,
            address=wish.address,
            tags=wish.tags,
        )

    @app.get("/executions")
    async def executions() -> int:
        return int(app.state.executions)

    return app


class Ceiling:
    """Answers every request with a fixed response: the upper bound for any middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.body = JSONResponse(ORDER, 201).body
        self.headers = JSONResponse(ORDER, 201).raw_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await receive()
        await send({"type": "http.response.start", "status": 201, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


def front_door(name: str, store: str, wait: float) -> ASGIApp:
    if name == "plain":
        return application(lambda handler: handler)
    if name == "ceiling":
        app = application(lambda handler: handler)
        app.add_middleware(Ceiling)
        return app
    if name == "original":
        return original(store, wait)
    import idemptx.backend

    backend = idemptx.backend.from_url(store)
    if name == "decorator":
        return application(idemptx.idempotent(backend, wait_timeout=wait))
    app = application(lambda handler: handler)
    if name == "wrapper":
        return idemptx.IdempotencyMiddleware(app, backend, wait_timeout=wait)
    app.add_middleware(idemptx.IdempotencyMiddleware, storage_backend=backend, wait_timeout=wait)
    return app


def original(store: str, wait: float) -> FastAPI:
    """The original package; the scheme `redis+sync` stands for its synchronous backend."""
    import idemptx
    import redis
    from idemptx import backend, exceptions

    assert not hasattr(idemptx, "IdempotencyMiddleware"), "this is not the original package"
    if store == "memory:":
        chosen = backend.InMemoryBackend()
    elif store.startswith("redis+sync:"):
        chosen = backend.RedisBackend(redis.Redis.from_url(store.replace("+sync", "", 1)))
    else:
        chosen = backend.AsyncRedisBackend(redis.asyncio.Redis.from_url(store))
    # Its exceptions are errors of the server unless the application handles them.
    app = application(idemptx.idempotent(chosen, wait_timeout=wait))

    async def conflict(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 409)

    app.exception_handler(exceptions.IdempotencyException)(conflict)
    return app


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("--front", default="plain")
    flags.add_argument("--store", default="memory:")
    flags.add_argument("--wait-ms", type=int, default=0)
    flags.add_argument("--core", type=int)
    flags.add_argument("--original", type=Path, help="where the original package is installed")
    flags.add_argument("--fill", type=int, help="serve nobody, but keep so many keys and expire")
    given = flags.parse_args()
    if given.core is not None and given.core < (os.cpu_count() or 1):
        os.sched_setaffinity(0, {given.core})
    if given.front == "original":
        # Before what is installed in the environment: the two have the same name.
        sys.path.insert(0, str(given.original))
    if given.fill is not None:
        import fill

        print(fill.grow(given.front, given.fill))
        return
    serve(front_door(given.front, given.store, given.wait_ms / 1000))


def serve(app: ASGIApp) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    print("{}:{}".format(*listener.getsockname()), flush=True)
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", access_log=False, log_level="critical"
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
