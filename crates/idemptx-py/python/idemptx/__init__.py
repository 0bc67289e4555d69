"""Makes FastAPI and Starlette APIs safe to retry.

A client sends `Idempotency-Key`: the first request runs the handler, every retry gets the same
answer, byte for byte, and nothing is executed twice.

    from fastapi import FastAPI
    from idemptx import idempotent
    from idemptx.backend import RedisBackend

    app = FastAPI()
    backend = RedisBackend("redis://localhost")

    @app.post("/orders")
    @idempotent(storage_backend=backend)
    async def create_order(item: str) -> dict[str, str]:
        return {"ordered": item}
"""

from __future__ import annotations

from importlib.metadata import version

from ._engine import drain
from ._execution import Execution, current_execution
from ._orphan import Orphan
from ._outcomes import RequestOutcome, outcome_counts
from ._safety import Finding, SafetyReport, Severity
from .decorator import idempotent
from .exceptions import (
    ConflictRequestException,
    IdempotencyConflictException,
    IdempotencyException,
    LeaseLostException,
    MissingKeyException,
    RecoveryException,
    RequestInProgressException,
    RequestRefusedException,
)
from .middleware import IdempotencyMiddleware
from .transaction import IdempotentTransaction

__version__ = version("idemptx")

__all__ = [
    "ConflictRequestException",
    "Execution",
    "Finding",
    "IdempotencyConflictException",
    "IdempotencyException",
    "IdempotencyMiddleware",
    "IdempotentTransaction",
    "LeaseLostException",
    "MissingKeyException",
    "Orphan",
    "RecoveryException",
    "RequestInProgressException",
    "RequestOutcome",
    "RequestRefusedException",
    "SafetyReport",
    "Severity",
    "current_execution",
    "drain",
    "idempotent",
    "outcome_counts",
]
