"""Uses a file of SQLite, forks, and finds that the children refuse it, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from idemptx import idempotent
from idemptx.backend import SqliteBackend

FOLDER = Path(os.environ["TEST_FOLDER"])
KEY = {"Idempotency-Key": "k"}
# A busy machine takes its time to open a file.
PATIENT = {"store_timeout_ms": {"claim": 20_000}}

used = SqliteBackend(FOLDER / "used.db")
untouched = SqliteBackend(FOLDER / "untouched.db")
app = FastAPI()


@app.post("/used")
@idempotent(used, policy=PATIENT)
async def use() -> dict[str, int]:
    return {"pid": os.getpid()}


@app.post("/untouched")
@idempotent(untouched, policy=PATIENT)
async def use_the_other() -> dict[str, int]:
    return {"pid": os.getpid()}


async def send(path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
        return await client.post(path, headers=KEY)


def run(path: str) -> httpx.Response:
    if os.environ["TEST_LOOP"] == "uvloop":
        import uvloop  # noqa: PLC0415

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(send(path))
    return asyncio.run(send(path))


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"


def in_a_child(look: Any) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            look()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def look_at_the_used_one() -> None:
    lines = Lines()
    logging.getLogger("idemptx").addHandler(lines)
    assert run("/used").status_code == 503
    assert "only after the fork" in lines.text, lines.text


def look_at_the_other() -> None:
    assert run("/untouched").json() == {"pid": os.getpid()}


def main() -> None:
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    logging.getLogger("idemptx").propagate = False
    first = run("/used")
    in_a_child(look_at_the_used_one)
    in_a_child(look_at_the_other)
    assert run("/used").content == first.content
    # Who opens it only now waits for no lock of the child's.
    assert run("/untouched").status_code == 200
    print("fine")  # noqa: T201


if __name__ == "__main__":
    main()
