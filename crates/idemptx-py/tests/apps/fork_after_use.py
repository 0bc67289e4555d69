"""Uses a backend, forks, and uses it in the children and in the parent again."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from typing import Any

import httpx
from fastapi import FastAPI
from idemptx import idempotent
from idemptx.backend import from_url

CHILDREN = 3

app = FastAPI()
backend = from_url(os.environ["TEST_STORE"])


@app.post("/orders")
@idempotent(backend, wait_timeout=20)
async def create_order() -> dict[str, int]:
    await asyncio.sleep(0.05)
    return {"pid": os.getpid()}


async def send(keys: list[str]) -> list[Any]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
        sent = [client.post("/orders", headers={"Idempotency-Key": key}) for key in keys]
        return [answer.json() for answer in await asyncio.gather(*sent)]


def run(keys: list[str]) -> list[Any]:
    if os.environ["TEST_LOOP"] == "uvloop":
        import uvloop  # noqa: PLC0415

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(send(keys))
    return asyncio.run(send(keys))


def main() -> None:
    # Not what it thinks of this store, nor how long a step takes in development mode.
    for name in ("idemptx", "asyncio"):
        logging.getLogger(name).setLevel(logging.ERROR)
    before = run(["before"])
    reader, writer = os.pipe()
    children = []
    for _ in range(CHILDREN):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                answers = run(["before", "after"])
                os.write(writer, (json.dumps(answers) + "\n").encode())
                status = 0
            finally:
                sys.stdout.flush()
                os._exit(status)
        children.append(child)
    os.close(writer)
    with os.fdopen(reader) as lines:
        seen = [json.loads(line) for line in lines]
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    assert len(seen) == CHILDREN
    assert all(answers[0] == before[0] for answers in seen), "the parent's answer was not replayed"
    assert len({json.dumps(answers[1]) for answers in seen}) == 1, "executed more than once"
    assert run(["after"])[0] == seen[0][1]
    print("fine")  # noqa: T201


if __name__ == "__main__":
    main()
