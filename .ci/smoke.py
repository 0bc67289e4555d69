#!/usr/bin/env python3
"""Runs one request and its retry against the installed package, over memory and over SQLite."""

import asyncio
import json
import os
import tempfile

from fastapi import FastAPI
from idemptx import idempotent
from idemptx.backend import from_url


def main():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        for url in ("memory:", "sqlite:keys.db"):
            asyncio.run(check(url))
            print(f"{url} replays")
        os.chdir("/")


async def check(url):
    app, executed = FastAPI(), []

    @app.post("/orders")
    @idempotent(from_url(url))
    async def create_order(order: dict[str, str]) -> dict[str, int]:
        executed.append(order)
        return {"order": len(executed)}

    first, retry = await post(app), await post(app)
    if first != retry or first[0] != 200 or len(executed) != 1:
        raise SystemExit(f"{url}: {first}, then {retry}, executed {len(executed)} times")


async def post(app):
    """Returns the status and the body, without an HTTP client or server."""
    body = json.dumps({"item": "tea"}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"idempotency-key", b"8e03978e"),
    ]
    scope = {
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
    }
    sent, requests = [], [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if requests:
            return requests.pop()
        return await asyncio.Event().wait()  # the client stays connected

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


if __name__ == "__main__":
    main()
