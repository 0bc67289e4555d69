"""The application: endpoints whose every execution answers differently and can be counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from idemptx import current_execution

from target_fastapi import bodies
from target_fastapi.run import Executions, Run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import StatelessLifespan

    from target_fastapi.journal import Journal

    Handler = Callable[..., Awaitable[Any]]


def application(
    journal: Journal | None,
    protect: Callable[[Handler], Handler],
    lifespan: StatelessLifespan[FastAPI] | None,
) -> FastAPI:
    """The application, with `protect` round every handler that changes something."""
    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.state.executions = Executions(journal)
    app.add_api_route("/count", last, methods=["GET", "HEAD"])
    app.add_api_route("/count", protect(created), methods=["POST", "PATCH"], status_code=201)
    app.add_api_route("/slow", protect(created), methods=["POST"], status_code=201)
    posts: dict[str, Handler] = {
        "/echo": echo,
        "/status/{code}": status,
        "/flaky": flaky,
        "/raise": fail,
        "/cookie": cookie,
        "/headers": headers,
        "/bytes": noise,
        "/stream": stream,
        "/events": events,
        "/abort": abort,
        "/outcome": outcome,
        "/execution": execution,
    }
    for path, handler in posts.items():
        app.add_api_route(path, protect(handler), methods=["POST"], response_model=None)
    return app


async def last(request: Request) -> dict[str, str]:
    return {"n": Executions.of(request).last}


async def created(request: Request) -> dict[str, str]:
    run = await Run.begin(request)
    return await run.end(run.serial)


async def echo(request: Request) -> Response:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > ECHO_BYTES_MAX:
            raise HTTPException(413)
    run = await Run.begin(request)
    response = Response(bytes(body), headers={"X-Executed": run.n})
    if "content-type" in request.headers:
        response.headers["Content-Type"] = request.headers["content-type"]
    return await run.end(response)


async def status(request: Request, code: int) -> Response:
    run = await Run.begin(request)
    if code not in STATUSES:
        return await run.end(Response(status_code=400))
    if code in WITHOUT_BODY:
        return await run.end(Response(status_code=code))
    return await run.end(JSONResponse(run.serial, code))


async def flaky(request: Request, fails: int) -> Response:
    run = await Run.begin(request)
    counts = Executions.of(request).flaky
    counts[run.key] += 1
    return await run.end(JSONResponse(run.serial, 503 if counts[run.key] <= fails else 201))


async def fail(request: Request) -> Response:
    await Run.begin(request)
    message = "the handler fails, as it was asked to"
    raise RuntimeError(message)


async def cookie(request: Request) -> Response:
    run = await Run.begin(request)
    response = JSONResponse(run.serial)
    response.raw_headers.append((b"set-cookie", f"session={run.n}".encode()))
    response.raw_headers.append((b"set-cookie", b"theme=dark"))
    return await run.end(response)


async def headers(request: Request) -> Response:
    run = await Run.begin(request)
    response = JSONResponse(run.serial)
    response.raw_headers += [
        (b"x-multi", b"first"),
        (b"x-multi", b"second"),
        (b"etag", b'"v1"'),
        (b"location", b"/things/1"),
        (b"cache-control", b"no-cache"),
        (b"connection", b"X-Hop"),
        (b"x-hop", b"1"),
        (b"x-latin", b"caf\xe9"),
    ]
    return await run.end(response)


async def noise(request: Request, n: int) -> Response:
    run = await Run.begin(request)
    body = bodies.noise(run.n, n)
    return await run.end(Response(body, media_type="application/octet-stream"))


async def stream(request: Request, chunks: int, gap: int = 0) -> Response:
    run = await Run.begin(request)
    body = bodies.chunks(run, f"{run.n} chunk\n", chunks, gap)
    return StreamingResponse(body, media_type="text/plain")


async def events(request: Request, chunks: int, gap: int = 0) -> Response:
    run = await Run.begin(request)
    body = bodies.chunks(run, f"data: {run.n}\n\n", chunks, gap)
    asked = request.query_params
    lines = {"X-Accel-Buffering": asked.get("buffering"), "Idempotency-Outcome": asked.get("o")}
    headers = {name: value for name, value in lines.items() if value is not None}
    kind = asked.get("kind", "text/event-stream")
    return StreamingResponse(body, media_type=kind, headers=headers)


async def abort(request: Request) -> Response:
    await Run.begin(request)
    declared = {"Content-Length": str(2 * bodies.HALF_BYTES)}
    return StreamingResponse(bodies.half(), headers=declared)


async def outcome(request: Request, o: str) -> Response:
    run = await Run.begin(request)
    return await run.end(JSONResponse(run.serial, headers={"Idempotency-Outcome": o}))


async def execution(request: Request) -> dict[str, Any]:
    run = await Run.begin(request)
    seen = current_execution()
    if seen is None:
        attempt = request.headers.get("idempotency-attempt", "")
        return await run.end(
            {
                "key": None if run.key == "-" else run.key,
                "attempt": int(attempt) if attempt.isdecimal() else None,
                "token": None,
                "derived": None,
            }
        )
    return await run.end(
        {
            "key": seen.key,
            "attempt": seen.attempt,
            "token": seen.token,
            "derived": seen.derive("charge"),
        }
    )


ECHO_BYTES_MAX = 64 << 20
"""No request is echoed beyond this, whoever forwards it."""
STATUSES = range(200, 600)
WITHOUT_BODY = (204, 304)
