"""An application behind the middleware, for tests of what it lets through."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from idemptx import IdempotencyMiddleware
from idemptx.backend import InMemoryBackend


def behind_middleware(**options: Any) -> FastAPI:
    """An application of every path, which counts its executions in `app.state.calls`."""
    app = FastAPI()
    app.state.calls = 0

    async def handle(request: Request) -> Any:
        app.state.calls += 1
        return JSONResponse({"n": app.state.calls}, 201, {"X-Path": request.url.path})

    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        app.add_api_route("/{path:path}", handle, methods=[method])
    app.add_middleware(IdempotencyMiddleware, storage_backend=InMemoryBackend(), **options)
    return app
