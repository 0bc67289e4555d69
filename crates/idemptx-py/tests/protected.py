"""An application of one handler, for tests of its answers and of its records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from idemptx import idempotent
from idemptx.backend import InMemoryBackend

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = {"Idempotency-Key": "k"}


def protected(
    backend: Any = None, *, path: str = "/orders", **options: Any
) -> Callable[[Callable[..., Any]], FastAPI]:
    """Makes an application of a handler: a POST under the decorator, over memory by default."""

    def serve(handler: Callable[..., Any]) -> FastAPI:
        app = FastAPI()
        protect = idempotent(InMemoryBackend() if backend is None else backend, **options)
        app.post(path)(protect(handler))
        return app

    return serve


def order_scope() -> dict[str, Any]:
    """The scope of `POST /orders` with a key, as a server makes it."""
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/orders",
        "raw_path": b"/orders",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"idempotency-key", b"k"), (b"host", b"test")],
    }
