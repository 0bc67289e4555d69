"""The owner of a key and the identity of an operation: scopes, paths, mounts and layers."""
# Annotations are read at run time by FastAPI, which sees no names of enclosing functions:

from __future__ import annotations

import uuid
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from idemptx import IdempotencyMiddleware, idempotent
from idemptx.backend import InMemoryBackend
from protected import KEY, protected
from starlette.responses import JSONResponse

pytestmark = pytest.mark.anyio


def counting(backend: Any, **options: Any) -> tuple[FastAPI, list[str]]:
    """An application with one decorated route, and the paths that were executed."""
    app, executed = FastAPI(), []

    @app.api_route("/orders", methods=["GET", "POST"])
    @idempotent(backend, **options)
    async def orders(request: Request) -> Any:
        executed.append(request.scope["root_path"] + request.scope["path"])
        return {"n": len(executed)}

    return app, executed


def named_by(number: int) -> dict[str, Any]:
    secret = {"id": number, "secret": f"a secret that names records {number}"}
    return {"policy": {"naming_secret": secret}}


@pytest.mark.parametrize("found", [b"", (), {}, False, ""])
async def test_what_identifies_nobody_is_no_scope(connect: Any, found: Any) -> None:
    app, executed = counting(InMemoryBackend(), scope=lambda _: found)
    async with connect(app) as client:
        answer = await client.post("/orders", headers=KEY)
    assert answer.json()["code"] == "scope-unresolved"
    assert executed == []


@pytest.mark.parametrize("found", [object(), True, b"alice", ["alice"]])
async def test_an_object_is_no_scope(connect: Any, found: Any) -> None:
    app, executed = counting(InMemoryBackend(), scope=lambda _: found)
    async with connect(app) as client:
        assert (await client.post("/orders", headers=KEY)).status_code == 500
    assert executed == []


@pytest.mark.parametrize("found", ["alice", 0, 17, uuid.uuid4()])
async def test_text_numbers_and_uuids_are_scopes(connect: Any, found: Any) -> None:
    app, executed = counting(InMemoryBackend(), scope=lambda _: found)
    async with connect(app) as client:
        tries = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert [it.headers["x-idempotency-status"] for it in tries] == ["new", "hit"]
    assert len(executed) == 1


@pytest.mark.parametrize("layer", ["decorator", "middleware"])
async def test_the_scope_is_asked_for_only_with_a_valid_key(connect: Any, layer: str) -> None:
    def scope(request: Request) -> str:
        return request.headers["x-user"]

    backend = InMemoryBackend()
    app: Any
    if layer == "decorator":
        app, _ = counting(backend, scope=scope, required=False)
    else:
        inner = FastAPI()

        @inner.api_route("/orders", methods=["GET", "POST"])
        async def orders() -> Any:
            return {}

        app = IdempotencyMiddleware(inner, backend, scope=scope)
    async with connect(app) as client:
        assert (await client.get("/orders")).status_code == 200
        assert (await client.post("/orders")).status_code == 200
        assert (await client.post("/orders", headers={**KEY, "x-user": "a"})).status_code == 200
        assert (await client.post("/orders", headers=KEY)).status_code == 500


async def test_a_scope_in_the_body_needs_the_decorator(connect: Any) -> None:
    async def scope(request: Request) -> str:
        account: str = (await request.json())["account"]
        return account

    decorated, executed = counting(InMemoryBackend(), scope=scope)
    async with connect(decorated) as client:
        for account in ("alice", "bob", "alice"):
            answer = await client.post("/orders", headers=KEY, json={"account": account})
            assert answer.status_code == 200
    assert len(executed) == 2
    app = IdempotencyMiddleware(FastAPI(), InMemoryBackend(), scope=scope)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        with pytest.raises(RuntimeError, match="protect this route with the decorator"):
            await client.post("/orders", headers=KEY, json={"account": "alice"})


@pytest.mark.parametrize("scope", [None, lambda _: "alice"])
@pytest.mark.parametrize(
    ("one", "another"),
    [
        ({"namespace": "shop"}, {"namespace": "bank"}),
        ({"namespace": ""}, {"namespace": "bank"}),
        (named_by(1), named_by(2)),
        ({}, named_by(2)),
    ],
)
async def test_namespace_and_naming_secret_are_part_of_a_record_s_name(
    connect: Any, scope: Any, one: dict[str, Any], another: dict[str, Any]
) -> None:
    backend = InMemoryBackend()
    statuses = []
    for options in (one, another, one, another):
        app, _ = counting(backend, scope=scope, **options)
        async with connect(app) as client:
            answer = await client.post("/orders", headers=KEY)
        statuses.append(answer.headers["x-idempotency-status"])
    assert statuses == ["new", "new", "hit", "hit"]


async def test_the_middleware_has_a_namespace_as_the_decorator(connect: Any) -> None:
    backend = InMemoryBackend()
    inner, executed = FastAPI(), []

    @inner.post("/orders")
    async def orders() -> Any:
        executed.append(1)
        return {}

    for namespace in ("shop", "bank", "shop"):
        app: Any = IdempotencyMiddleware(inner, backend, namespace=namespace)
        async with connect(app) as client:
            assert (await client.post("/orders", headers=KEY)).status_code == 200
    assert len(executed) == 2


async def test_a_placeholder_instead_of_a_key_is_logged_once(
    connect: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idemptx._reports._Reports.warned", set())
    app, _ = counting(InMemoryBackend())
    async with connect(app) as client:
        for key in ("good", "${ORDER_KEY}", "undefined", "undefined"):
            answer = await client.post("/orders", headers={"Idempotency-Key": key})
            assert answer.status_code == 200
    warnings = [it.getMessage() for it in caplog.records if "placeholder" in it.getMessage()]
    assert len(warnings) == 1
    assert "ORDER_KEY" not in warnings[0]


async def test_cookies_without_a_bound_header_are_logged_once(
    connect: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idemptx._reports._Reports.warned", set())
    app, _ = counting(InMemoryBackend(), profile="draft")
    session = {"Cookie": "session=s3cret"}
    async with connect(app) as client:
        for number, headers in enumerate([{}, {**session, "X-Api-Key": "a"}, session, session]):
            if number == 2:
                assert "cookies" not in caplog.text
            named = {"Idempotency-Key": f"k-{number}", **headers}
            assert (await client.post("/orders", headers=named)).status_code == 200
    warnings = [it.getMessage() for it in caplog.records if "cookies" in it.getMessage()]
    assert len(warnings) == 1
    assert "s3cret" not in warnings[0]


@pytest.mark.parametrize(("said", "count"), [("nonsense", 1), ("Unknown", 0)])
async def test_an_outcome_that_cannot_be_read_is_logged(
    connect: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    count: int,
) -> None:
    monkeypatch.setattr("idemptx._reports._Reports.warned", set())

    @protected()
    async def app() -> Any:
        return JSONResponse({}, headers={"Idempotency-Outcome": said})

    async with connect(app) as client:
        await client.post("/orders", headers=KEY)
    warnings = [it for it in caplog.records if "Idempotency-Outcome" in it.getMessage()]
    assert len(warnings) == count


async def test_applications_below_different_prefixes_of_a_proxy_are_different_operations(
    connect: Any,
) -> None:
    backend = InMemoryBackend()
    answers, all_executed = [], []
    for root in ("/a", "/b"):
        app, executed = counting(backend)
        # The proxy removes the prefix, and the server says which it was.
        async with connect(app, transport={"root_path": root}) as client:
            answers.append(await client.post("/orders", headers=KEY))
        all_executed += executed
    assert [it.headers["x-idempotency-status"] for it in answers] == ["new", "new"]
    assert len(all_executed) == 2


@pytest.mark.parametrize("sent", ["/orders", "/api/orders"])
async def test_a_prefix_counts_once_whether_the_server_adds_it_or_not(
    connect: Any, sent: str
) -> None:
    backend = InMemoryBackend()
    app, executed = counting(backend)
    async with connect(app, transport={"root_path": "/api"}) as client:
        first = await client.post("/api/orders", headers=KEY)
        again = await client.post(sent, headers=KEY)
    assert (first.status_code, again.headers["x-idempotency-status"]) == (200, "hit")
    assert len(executed) == 1


@pytest.mark.parametrize("root", ["", "/api"])
async def test_routes_of_a_mounted_application_are_its_own(connect: Any, root: str) -> None:
    executed = []
    inner = FastAPI()

    @inner.post("/orders")
    async def orders() -> Any:
        executed.append(1)
        return {}

    inner.add_middleware(
        IdempotencyMiddleware,
        storage_backend=InMemoryBackend(),
        routes={"POST /orders": {"required": True}},
    )
    app = FastAPI()
    app.mount("/shop", inner)
    async with connect(app, transport={"root_path": root}) as client:
        assert (await client.post(f"{root}/shop/orders")).status_code == 400
        for _ in range(2):
            answer = await client.post(f"{root}/shop/orders", headers=KEY)
            assert answer.status_code == 200
    assert executed == [1]


async def test_the_inner_one_of_two_layers_passes(connect: Any) -> None:
    executed = []
    backend = InMemoryBackend()
    inner = FastAPI()

    @inner.post("/orders")
    async def orders() -> Any:
        executed.append(1)
        return {}

    inner.add_middleware(IdempotencyMiddleware, storage_backend=backend)
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, storage_backend=backend)
    app.mount("/shop", inner)
    async with connect(app) as client:
        tries = [await client.post("/shop/orders", headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in tries] == [200, 200]
    assert executed == [1]


@pytest.mark.parametrize("space", ["route", "scope"])
async def test_an_execution_covers_no_other_operation_with_its_key(
    connect: Any, space: str
) -> None:
    policy = {"key_space": space}
    backend = InMemoryBackend()
    app, charged = FastAPI(), []

    @app.post("/charges")
    @idempotent(backend, policy=policy)
    async def charge() -> Any:
        charged.append(1)
        return {}

    @app.post("/orders")
    @idempotent(backend, policy=policy)
    async def order() -> Any:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [(await client.post("/charges", headers=KEY)).status_code for _ in range(3)]

    async with connect(app) as client:
        answer = await client.post("/orders", headers=KEY)
    assert set(answer.json()) <= ({200} if space == "route" else {409, 422})
    assert charged == ([1] if space == "route" else [])


def test_the_narrower_setting_of_a_route_counts() -> None:
    made = IdempotencyMiddleware(
        FastAPI(), InMemoryBackend(), key_ttl=300, routes={"POST /orders": {"retain_ms": 60_000}}
    )
    [route] = made._routes
    assert route.rules is not None
    assert route.rules.retain == 60


def test_a_route_that_can_match_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing would match"):
        IdempotencyMiddleware(
            FastAPI(), InMemoryBackend(), policy={"methods": ["POST"]}, routes=["PUT /orders"]
        )


async def test_a_response_without_header_lines_passes_in_shadow_mode(connect: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"made"})

    shadow = IdempotencyMiddleware(app, InMemoryBackend(), policy={"mode": "shadow"})
    async with connect(shadow) as client:
        tries = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert [answer.content for answer in tries] == [b"made", b"made"]


@pytest.mark.parametrize("profile", ["draft", "idemptx", "stripe"])
async def test_a_client_may_follow_the_redirect_for_a_slash_with_its_key(
    connect: Any, profile: str
) -> None:
    app = FastAPI()

    @app.post("/orders/")
    async def orders() -> Any:
        return {}

    layer = IdempotencyMiddleware(app, InMemoryBackend(), profile=profile)
    async with connect(layer, follow_redirects=True) as client:
        answer = await client.post("/orders", headers={**KEY, "authorization": "Bearer a"})
    assert answer.status_code == 200
