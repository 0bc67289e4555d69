"""The middleware: before routing, around any ASGI application."""
# Annotations are read at run time by FastAPI, which sees no names of enclosing functions:
# ruff: noqa: FAST002

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, WebSocket
from idemptx import IdempotencyMiddleware, current_execution, drain, idempotent
from idemptx.backend import InMemoryBackend
from middleware_app import behind_middleware
from protected import KEY
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

pytestmark = pytest.mark.anyio


async def _marks(client: Any, request: str, **headers: str) -> list[Any]:
    """Returns the replay marks of two tries."""
    method, path = request.split()
    tries = [await client.request(method, path, headers={**KEY, **headers}) for _ in range(2)]
    return [answer.headers.get("idempotent-replayed") for answer in tries]


EXECUTED_TWICE = [None, None]
REPLAYED = [None, "true"]


async def test_a_retry_is_answered_before_dependencies_and_validation(connect: Any) -> None:
    log: list[str] = []
    app = FastAPI()

    @app.post("/orders", dependencies=[Depends(lambda: log.append("dependency"))])
    async def create_order(count: int) -> Any:
        log.append("handler")
        return {"count": count}

    app.add_middleware(IdempotencyMiddleware, storage_backend=InMemoryBackend())
    async with connect(app) as client:
        first, again = [await client.post("/orders?count=2", headers=KEY) for _ in range(2)]
        assert log == ["dependency", "handler"]
        invalid = [
            await client.post("/orders?count=x", headers={"Idempotency-Key": "l"}) for _ in range(2)
        ]
    assert first.content == again.content
    assert again.headers["idempotent-replayed"] == "true"
    assert "x-idempotency-status" not in again.headers
    assert [answer.status_code for answer in invalid] == [422, 422]
    assert "detail" in invalid[0].json()


async def test_its_profile_is_the_drafts(connect: Any) -> None:
    app = behind_middleware()
    async with connect(app) as client:
        assert await _marks(client, "POST /a") == REPLAYED
        assert await _marks(client, "PATCH /p", **{"Idempotency-Key": "p"}) == REPLAYED
        assert await _marks(client, "PUT /a", **{"Idempotency-Key": "u"}) == EXECUTED_TWICE
        assert await _marks(client, "GET /a", **{"Idempotency-Key": "g"}) == EXECUTED_TWICE
        without = [await client.post("/a") for _ in range(2)]
        elsewhere = await client.post("/b", headers=KEY)
    assert [answer.status_code for answer in without] == [201, 201]
    # One key names one operation, whatever the path.
    assert (elsewhere.status_code, elsewhere.json()["code"]) == (422, "key-reused")


async def test_the_idemptx_profile_has_the_originals_headers_and_key_space(connect: Any) -> None:
    async with connect(behind_middleware(profile="idemptx", required=True)) as client:
        first, again = [await client.post("/a", headers=KEY) for _ in range(2)]
        elsewhere = await client.post("/b", headers=KEY)
        missing = await client.post("/a")
    assert first.headers["x-idempotency-status"] == "new"
    assert again.headers["x-idempotency-status"] == "hit"
    assert first.headers["idempotency-key"] == again.headers["idempotency-key"] == "k"
    assert first.headers["x-idempotency-signature"] == again.headers["x-idempotency-signature"]
    assert elsewhere.json() == {"n": 2}
    assert missing.json()["code"] == "missing-key"


async def test_a_key_echo_and_a_status_can_be_exposed(connect: Any) -> None:
    async with connect(behind_middleware(policy={"expose": ["key", "status"]})) as client:
        first, again = [await client.post("/a", headers=KEY) for _ in range(2)]
    assert first.headers["idempotency-key"] == again.headers["idempotency-key"] == "k"
    assert first.headers["idempotency-status"] == "created"
    assert again.headers["idempotency-status"] == "replayed"


async def test_by_default_an_executed_answer_has_no_mark_at_all(connect: Any) -> None:
    app = behind_middleware()
    async with connect(app) as client:
        plain = await client.post("/a")
        keyed = await client.post("/a", headers=KEY)
    assert [name for name, _ in plain.headers.raw] == [name for name, _ in keyed.headers.raw]


async def test_the_stripe_profile_keeps_server_errors(connect: Any) -> None:
    calls = 0

    async def handle(request: Request) -> Response:
        nonlocal calls
        calls += 1
        return PlainTextResponse(str(calls), 503)

    for profile, expected in (("stripe", ["1", "1"]), ("draft", ["2", "3"])):
        app = _starlette(handle, profile=profile)
        async with connect(app) as client:
            answers = [await client.post("/", headers=KEY) for _ in range(2)]
        assert [answer.text for answer in answers] == expected
        stored = "idempotency-stored" not in answers[0].headers
        assert stored == (profile == "stripe")


async def test_patterns_choose_the_routes(connect: Any) -> None:
    routes = ["POST /orders", "/payments/*", "PUT,PATCH /orders/{id}"]
    async with connect(behind_middleware(routes=routes)) as client:
        requests = {
            "POST /orders": REPLAYED,
            "PATCH /orders": EXECUTED_TWICE,
            "POST /orders/": EXECUTED_TWICE,
            "POST /payments/7/refund": REPLAYED,
            "POST /payments": EXECUTED_TWICE,
            "PATCH /orders/7": REPLAYED,
            "PUT /orders/7": REPLAYED,
            "POST /orders/7": EXECUTED_TWICE,
            "PATCH /orders/7/lines": EXECUTED_TWICE,
            "POST /other": EXECUTED_TWICE,
        }
        for number, (request, expected) in enumerate(requests.items()):
            marks = await _marks(client, request, **{"Idempotency-Key": f"k{number}"})
            assert marks == expected, request


async def test_patterns_may_be_written_as_the_routes_are(connect: Any) -> None:
    routes = ["/files/{path:path}", "/orders/{id:int}/lines"]
    async with connect(behind_middleware(routes=routes)) as client:
        requests = {
            "POST /files/a/b": REPLAYED,
            "POST /files/": REPLAYED,
            "POST /files": EXECUTED_TWICE,
            "POST /orders/7/lines": REPLAYED,
            "POST /orders/7/8/lines": EXECUTED_TWICE,
        }
        for number, (request, expected) in enumerate(requests.items()):
            marks = await _marks(client, request, **{"Idempotency-Key": f"k{number}"})
            assert marks == expected, request


async def test_a_mapping_lays_a_policy_over_each_route(connect: Any) -> None:
    routes = {
        "POST /orders/exempt": None,
        "POST /orders/strict": {"required": True, "mismatch_status": 409},
        "POST /orders/*": {},
    }
    async with connect(behind_middleware(routes=routes, policy={"expose": ["status"]})) as client:
        assert await _marks(client, "POST /orders/exempt") == EXECUTED_TWICE
        assert (await client.post("/orders/strict")).json()["code"] == "missing-key"
        assert (await client.post("/orders/lax")).status_code == 201
        await client.post("/orders/strict", headers=KEY, json=1)
        assert (await client.post("/orders/strict", headers=KEY, json=2)).status_code == 409
        key = {"Idempotency-Key": "l"}
        await client.post("/orders/lax", headers=key, json=1)
        assert (await client.post("/orders/lax", headers=key, json=2)).status_code == 422


@pytest.mark.parametrize(
    "options",
    [
        {"routes": "POST /orders"},
        {"routes": ["orders"]},
        {"routes": ["FETCH /orders"]},
        {"routes": {"POST /orders": {"leese_ms": 1}}},
        {"profile": "nonsense"},
        {"policy": {"wait_ms": -1}},
        {"storage_backend": "nonsense"},
    ],
)
def test_a_bad_parameter_is_refused_before_the_first_request(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        IdempotencyMiddleware(FastAPI(), **{"storage_backend": InMemoryBackend(), **options})


async def test_scope_functions_keep_tenants_apart(connect: Any) -> None:
    async def asynchronous(request: Request) -> str | None:
        return request.headers.get("x-tenant")

    def synchronous(request: Request) -> str | None:
        return request.headers.get("x-tenant")

    for scope in (synchronous, asynchronous, {"header": "X-Tenant"}):
        async with connect(behind_middleware(scope=scope)) as client:
            answers = [
                await client.post("/a", headers={**KEY, "X-Tenant": tenant})
                for tenant in ("alice", "bob", "alice")
            ]
            nobody = await client.post("/a", headers=KEY)
        assert [answer.json()["n"] for answer in answers] == [1, 2, 1]
        assert nobody.status_code in {400, 401}
        assert nobody.json()["code"] == "scope-unresolved"


async def test_refusals_are_problem_documents_whatever_the_application_handles(
    connect: Any,
) -> None:
    app = behind_middleware(required=True)

    @app.exception_handler(HTTPException)
    async def handle(request: Request, error: Exception) -> Response:
        raise AssertionError

    async with connect(app) as client:
        missing = await client.post("/a")
        invalid = await client.post("/a", headers={"Idempotency-Key": "a,b"})
        await client.post("/a", headers=KEY, json=1)
        reused = await client.post("/a", headers=KEY, json=2)
    for answer, status, code in (
        (missing, 400, "missing-key"),
        (invalid, 400, "invalid-key"),
        (reused, 422, "key-reused"),
    ):
        problem = answer.json()
        assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["cache-control"] == "no-store"
        assert int(answer.headers["content-length"]) == len(answer.content)
    assert app.state.calls == 1


async def test_an_applications_own_check_of_keys_is_asked(connect: Any) -> None:
    async with connect(behind_middleware(accepts=str.isdigit)) as client:
        good = await client.post("/a", headers={"Idempotency-Key": "12"})
        bad = await client.post("/a", headers=KEY)
    assert (good.status_code, bad.status_code) == (201, 400)


async def test_the_execution_is_seen_in_handlers_and_dependencies(connect: Any) -> None:
    def seen() -> str | None:
        execution = current_execution()
        return execution and execution.key

    app = FastAPI()

    @app.post("/orders")
    def create_order(dependency: str | None = Depends(seen)) -> Any:
        return {"dependency": dependency, "handler": seen()}

    app.add_middleware(IdempotencyMiddleware, storage_backend=InMemoryBackend())
    async with connect(app) as client:
        keyed = await client.post("/orders", headers=KEY)
        plain = await client.post("/orders")
    assert keyed.json() == {"dependency": "k", "handler": "k"}
    assert plain.json() == {"dependency": None, "handler": None}


async def test_websockets_pass() -> None:
    app = FastAPI()

    @app.websocket("/echo")
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    layered = IdempotencyMiddleware(app, storage_backend=InMemoryBackend())
    received = iter([{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hello"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(received)

    async def send(message: Any) -> None:
        sent.append(message.get("text", message["type"]))

    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0"},
        "path": "/echo",
        "raw_path": b"/echo",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"idempotency-key", b"k")],
        "subprotocols": [],
    }
    await layered(scope, receive, send)
    assert sent == ["websocket.accept", "hello", "websocket.close"]


async def test_it_works_below_a_root_path_and_in_a_mount(connect: Any) -> None:
    inner = behind_middleware(profile="idemptx")
    outer = FastAPI()
    outer.mount("/inner", inner)
    for app, path, transport in (
        (inner, "/a", {"root_path": "/proxy"}),
        (outer, "/inner/a", {}),
        (outer, "/inner/b%2Fc%20d", {}),
    ):
        async with connect(app, transport=transport) as client:
            key = {"Idempotency-Key": path}
            first, again = [await client.post(path, headers=key) for _ in range(2)]
        assert first.status_code == 201
        assert first.content == again.content
        assert again.headers["x-idempotency-status"] == "hit"


async def test_routes_are_matched_below_a_mount(connect: Any) -> None:
    outer, inner = FastAPI(), FastAPI()

    @inner.post("/{path}")
    async def handle(path: str) -> Any:
        return {"path": path}

    outer.mount("/inner", inner)
    outer.add_middleware(
        IdempotencyMiddleware, storage_backend=InMemoryBackend(), routes=["POST /inner/orders"]
    )
    async with connect(outer) as client:
        assert await _marks(client, "POST /inner/orders") == REPLAYED
        assert await _marks(client, "POST /inner/others", **{"Idempotency-Key": "l"}) == (
            EXECUTED_TWICE
        )


async def test_an_application_that_waits_for_the_end_of_its_request_ends(connect: Any) -> None:
    """Quart ends with what servers say after each response, and nothing else."""
    ended: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        calls = len(ended) // 2

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            ended.append("watch")

        async def respond() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            await asyncio.sleep(0)
            assert "watch" not in ended[2 * calls :]
            await send({"type": "http.response.body", "body": b"b"})

        await asyncio.gather(watch(), respond())
        ended.append("app")

    async with connect(IdempotencyMiddleware(app, InMemoryBackend())) as client:
        for number in range(2):
            answer = await client.post("/orders", headers={"Idempotency-Key": f"k{number}"})
            assert answer.text == "ab"
    assert await drain(20)
    assert ended == ["watch", "app"] * 2


async def test_starlette_takes_it_as_any_middleware(connect: Any) -> None:
    async def handle(request: Request) -> Response:
        return PlainTextResponse("done")

    layer = Middleware(IdempotencyMiddleware, storage_backend=InMemoryBackend())
    app = Starlette(routes=[Route("/", handle, methods=["POST"])], middleware=[layer])
    async with connect(app) as client:
        assert await _marks(client, "POST /") == REPLAYED


async def test_a_decorated_route_below_the_middleware_is_protected_once(connect: Any) -> None:
    """With one backend both would claim the same record, the inner one against the outer."""
    app, backend = FastAPI(), InMemoryBackend()
    numbers = iter(range(9))

    @app.post("/orders")
    @idempotent(backend)
    async def create_order() -> Any:
        return {"n": next(numbers)}

    app.add_middleware(IdempotencyMiddleware, storage_backend=backend, profile="idemptx")
    async with connect(app) as client:
        tries = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert [answer.json() for answer in tries] == [{"n": 0}] * 2


async def test_shadow_mode_changes_nothing_but_tells(connect: Any) -> None:
    app = behind_middleware(policy={"mode": "shadow"})
    async with connect(app) as client:
        answers = [await client.post("/a", headers=KEY, json=n) for n in (1, 1, 2)]
    assert [answer.json()["n"] for answer in answers] == [1, 2, 3]
    assert answers[1].headers["idempotency-status"] == "would-replay"
    assert answers[2].headers["idempotency-status"] == "would-refuse-key-reused"


async def test_json_bodies_may_be_compared_by_meaning(connect: Any) -> None:
    async with connect(behind_middleware(policy={"fingerprint": {"body": "json"}})) as client:
        headers = {**KEY, "Content-Type": "application/json"}
        first = await client.post("/a", headers=headers, content=b'{"a": 1, "b": 2}')
        same = await client.post("/a", headers=headers, content=b'{"b":2,"a":1}')
        equal = await client.post("/a", headers=headers, content=b'{"b":2,"a":1.0}')
        other = await client.post("/a", headers=headers, content=b'{"b":2,"a":1.5}')
    assert (first.status_code, same.status_code, other.status_code) == (201, 201, 422)
    assert equal.headers["idempotent-replayed"] == "true"
    assert same.headers["idempotent-replayed"] == "true"


async def test_a_retained_answer_expires(connect: Any) -> None:
    app = behind_middleware(policy={"retain_ms": 2000, "key_retain_ms": 2000})
    async with connect(app) as client:
        first = await client.post("/a", headers=KEY)
        again = await client.post("/a", headers=KEY)
        assert (first.json(), again.json()) == ({"n": 1}, {"n": 1})
        for _ in range(200):
            await asyncio.sleep(0.05)
            if (await client.post("/a", headers=KEY)).json() == {"n": 2}:
                break
    assert app.state.calls == 2


async def test_waiters_are_limited(connect: Any) -> None:
    began, go = asyncio.Event(), asyncio.Event()

    async def handle(request: Request) -> Response:
        began.set()
        await go.wait()
        return PlainTextResponse("done")

    app = _starlette(handle, wait_timeout=20, policy={"waiters_max": 2})
    async with connect(app) as client:
        tasks = [asyncio.create_task(client.post("/", headers=KEY))]
        await began.wait()
        tasks += [asyncio.create_task(client.post("/", headers=KEY)) for _ in range(5)]
        refused, _ = await _first(tasks, 3)
        go.set()
        answers = await asyncio.gather(*tasks)
    assert all(task.result().status_code == 409 for task in refused)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 409, 409, 409]


async def _first(tasks: list[Any], count: int) -> tuple[set[Any], set[Any]]:
    done: set[Any] = set()
    pending = set(tasks)
    while len(done) < count:
        finished, pending = await asyncio.wait(
            pending, timeout=20, return_when=asyncio.FIRST_COMPLETED
        )
        assert finished
        done |= finished
    return done, pending


def _starlette(handle: Any, **options: Any) -> Any:
    app = Starlette(routes=[Route("/", handle, methods=["POST"])])
    app.add_middleware(IdempotencyMiddleware, storage_backend=InMemoryBackend(), **options)
    return app
