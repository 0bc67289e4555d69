"""Prints by how many bytes this process grows with many keys that expire soon."""

import asyncio
import sys
from pathlib import Path
from typing import Any

from idemptx.backend import InMemoryBackend

KEYS = 20_000
TTL_SECONDS = 0.3
BODY = b"x" * 400
BATCHES = 20


def main() -> None:
    ours = sys.argv[1] == "ours"
    grown = asyncio.run(_through_the_middleware() if ours else _through_the_original())
    print(grown)  # noqa: T201


async def _through_the_middleware() -> int:
    from idemptx import IdempotencyMiddleware  # noqa: PLC0415 - the original has none

    before = _resident()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": BODY})

    backend = InMemoryBackend()
    layered = IdempotencyMiddleware(app, storage_backend=backend, key_ttl=TTL_SECONDS)
    statuses = set()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.add(message["status"])

    for number in range(KEYS):
        headers = [(b"idempotency-key", str(number).encode())]
        await layered(_scope(headers), receive, send)
        if number % (KEYS // BATCHES) == 0:
            await asyncio.sleep(TTL_SECONDS / 5)
    assert statuses == {201}
    return _resident() - before


async def _through_the_original() -> int:
    before = _resident()
    backend = InMemoryBackend()
    for number in range(KEYS):
        backend.acquire_lock(str(number), TTL_SECONDS)
        value = {"data": {"number": number}, "status_code": 201, "headers": {"n": str(number)}}
        backend.set(str(number), value, TTL_SECONDS)
        backend.release_lock(str(number))
    await asyncio.sleep(TTL_SECONDS)
    assert backend.get("0") is None
    return _resident() - before


def _scope(headers: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/orders",
        "raw_path": b"/orders",
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


if __name__ == "__main__":
    main()
