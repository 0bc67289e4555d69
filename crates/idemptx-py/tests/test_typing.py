"""Type checkers see that a decorated handler keeps its signature."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CHECKED = """
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typing_extensions import assert_type

import redis
import redis.asyncio
from fastapi import FastAPI, Request
from starlette.middleware import Middleware
from idemptx import (
    ConflictRequestException,
    IdempotencyException,
    IdempotencyMiddleware,
    MissingKeyException,
    current_execution,
    drain,
    idempotent,
)
from idemptx.backend import AsyncRedisBackend, InMemoryBackend, RedisBackend, from_url
from idemptx.backend.base import StorageBackend

app = FastAPI()
backend = RedisBackend(redis.Redis(), prefix="shop:")

@app.post("/orders")
@idempotent(backend, 60, True, 3.0, True)
async def create(order: int, *, note: str = "") -> dict[str, int]:
    execution = current_execution()
    if execution is not None:
        assert_type(execution.key, str)
        assert_type(execution.attempt, int)
        assert_type(execution.derive("charge"), str)
        execution.direct("store")
    return {"order": order}

@idempotent(storage_backend=AsyncRedisBackend(redis.asyncio.Redis()), policy={"lease_ms": 500},
            scope=lambda request: request.headers.get("x-tenant"), accepts=str.isdigit)
def plain(request: Request) -> bytes:
    return b""

class Own(StorageBackend):
    def get(self, key: str) -> dict[str, Any] | None:
        return None

    def set(self, key: str, value: dict[str, Any], ttl: int) -> None: ...

    def acquire_lock(self, key: str, ttl: int) -> bool:
        return True

    def release_lock(self, key: str) -> None: ...

app.add_middleware(IdempotencyMiddleware, storage_backend=Own(), routes=["POST /orders"])
Middleware(IdempotencyMiddleware, storage_backend=from_url("memory:"))
assert_type(InMemoryBackend().transport, str)

async def use() -> None:
    assert_type(await create(1, note="x"), dict[str, int])
    kept: Callable[[Request], bytes] = plain
    assert_type(kept, Callable[[Request], bytes])
    await drain(1.0)

def read(error: MissingKeyException | ConflictRequestException) -> IdempotencyException:
    assert_type(error.status_code, int)
    assert_type(error.code, str)
    return error
"""

REFUSED = {
    "await create('one')": "arg-type",
    "await create(1, memo='x')": "call-arg",
    "plain(1)": "arg-type",
    "idempotent(1)": "arg-type",
    "idempotent(backend, on_orphan='quarantine')": "call-arg",
}


def test_a_decorated_handler_keeps_its_signature_and_wrong_uses_are_found(tmp_path: Path) -> None:
    from mypy import api  # noqa: PLC0415 - slow to import

    wrong = textwrap.indent("\n".join(REFUSED), "    ")
    right, misused = tmp_path / "checked.py", tmp_path / "misused.py"
    right.write_text(CHECKED)
    misused.write_text(CHECKED + "\nasync def misuse() -> None:\n" + wrong + "\n")
    # One run, which reads FastAPI and Pydantic once.
    cache = str(tmp_path / "cache")
    options = ["--strict", "--config-file=", "--cache-dir", cache]
    out, err, _ = api.run([*options, str(right), str(misused)])
    assert not err
    errors = [line for line in out.splitlines() if ": error:" in line]
    assert len(errors) == len(REFUSED), out
    for line, code in zip(errors, REFUSED.values(), strict=True):
        assert "misused.py" in line
        assert line.endswith(f"[{code}]"), line
