"""Measures the memory that expired keys cost, without a server in between."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

KEY_TTL_SECONDS = 1
WARM_UP = 2_000


def grow(front: str, keys: int) -> int:
    """Bytes more after so many keys were used once, all expired, and a few more were used."""
    return asyncio.run(_grow(_protected(front), keys))


def _protected(front: str) -> FastAPI:
    app = FastAPI()

    async def order(request: Request) -> JSONResponse:
        return JSONResponse({"status": "created"}, 201)

    if front != "plain":
        import idemptx
        from idemptx.backend import InMemoryBackend

        order = idemptx.idempotent(InMemoryBackend(), key_ttl=KEY_TTL_SECONDS)(order)
    app.post("/orders")(order)
    return app


async def _grow(app: FastAPI, keys: int) -> int:
    for number in range(WARM_UP):
        await _request(app, f"warm-up {number}")
    gc.collect()
    before = _resident_bytes()
    for number in range(keys):
        await _request(app, f"{number:032x}")
    await asyncio.sleep(2 * KEY_TTL_SECONDS)
    for number in range(WARM_UP):
        await _request(app, f"afterwards {number}")
    gc.collect()
    return _resident_bytes() - before


async def _request(app: FastAPI, key: str) -> None:
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": "POST",
        "path": "/orders",
        "raw_path": b"/orders",
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"shop"),
            (b"idempotency-key", key.encode().replace(b" ", b"-")),
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await app(scope, receive, send)
    if statuses != [201]:
        raise SystemExit(f"answered {statuses}")


def _resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024
