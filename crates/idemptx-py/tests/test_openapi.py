"""An application's own OpenAPI document tells of keys, replays and refusals."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI, Header
from fastapi.openapi.utils import get_openapi
from idemptx import IdempotencyMiddleware, idempotent
from idemptx.backend import InMemoryBackend
from protected import protected
from protocol import KEY
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware

pytestmark = pytest.mark.anyio

PROBLEM = "application/problem+json"


class Order(BaseModel):
    item: str


def parameter_of(operation: dict[str, Any]) -> dict[str, Any]:
    found = [it for it in operation.get("parameters", ()) if it["in"] == "header"]
    assert len(found) <= 1
    return found[0] if found else {}


def application(layer: str, *, required: bool, **options: Any) -> FastAPI:
    app = FastAPI()

    async def create_order(order: Order) -> Order:
        return order

    options["required"] = required
    if layer == "decorator":
        create_order = idempotent(InMemoryBackend(), **options)(create_order)
    else:
        app.add_middleware(IdempotencyMiddleware, storage_backend=InMemoryBackend(), **options)
    app.post("/orders", status_code=201)(create_order)
    return app


async def document(connect: Any, app: Any) -> dict[str, Any]:
    async with connect(app) as client:
        answers = [(await client.get("/openapi.json")).json() for _ in range(2)]
    assert answers[0] == answers[1]
    return dict(answers[0])


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("layer", ["decorator", "middleware"])
async def test_a_protected_route_shows_key_refusals_and_replays(
    connect: Any, layer: str, required: bool
) -> None:
    app = application(layer, required=required)
    operation = (await document(connect, app))["paths"]["/orders"]["post"]
    parameter = parameter_of(operation)
    assert (parameter["name"], parameter["required"]) == ("Idempotency-Key", required)
    assert parameter["schema"] == {"type": "string", "minLength": 1, "maxLength": 257}
    responses = operation["responses"]
    assert "Idempotent-Replayed" in responses["201"]["headers"]
    codes = {
        status: response["content"][PROBLEM]["x-idempotency-codes"]
        for status, response in responses.items()
        if PROBLEM in response.get("content", {})
    }
    assert codes["400"] == (["missing-key"] if required else []) + ["invalid-key"]
    assert {"in-progress", "result-unavailable"} <= set(codes["409"])
    assert codes["422"] == ["key-reused"]
    # FastAPI's own stays.
    assert "application/json" in responses["422"]["content"]


@pytest.mark.parametrize("layer", ["decorator", "middleware"])
async def test_swagger_ui_can_send_what_is_required(connect: Any, layer: str) -> None:
    """The page is made from the document: with the parameter it asks for the key and sends it."""
    app = application(layer, required=True)
    async with connect(app) as client:
        assert "/openapi.json" in (await client.get("/docs")).text
        made = (await client.get("/openapi.json")).json()
        parameter = parameter_of(made["paths"]["/orders"]["post"])
        headers = {parameter["name"]: "k"}
        answer = await client.post("/orders", headers=headers, json={"item": "tea"})
    assert answer.status_code == 201


async def test_statuses_and_form_follow_the_policy(connect: Any) -> None:
    policy = {"mismatch_status": 409, "problem": {"format": "flat"}, "header_name": "x-key"}
    app = application("decorator", required=True, policy=policy)
    operation = (await document(connect, app))["paths"]["/orders"]["post"]
    assert parameter_of(operation)["name"] == "X-Key"
    content = operation["responses"]["409"]["content"]["application/json"]
    assert "key-reused" in content["x-idempotency-codes"]
    assert content["schema"]["required"] == ["type", "code", "message"]


async def test_the_middleware_describes_the_routes_that_it_covers(connect: Any) -> None:
    app = FastAPI()

    async def handle() -> None: ...

    for path in ("/orders", "/orders/{id}", "/exempt", "/other"):
        for method in ("GET", "POST"):
            app.add_api_route(path, handle, methods=[method])
    routes = {"POST /exempt": None, "POST /orders": {"required": True}, "/orders/{id}": {}}
    app.add_middleware(IdempotencyMiddleware, storage_backend=InMemoryBackend(), routes=routes)
    paths = (await document(connect, app))["paths"]
    described = {
        f"{method} {path}": parameter_of(operation)["required"]
        for path, item in paths.items()
        for method, operation in item.items()
        if parameter_of(operation)
    }
    assert described == {"post /orders": True, "post /orders/{id}": False}


async def test_the_middleware_describes_mounted_and_wrapped_applications(connect: Any) -> None:
    inner, app = FastAPI(), FastAPI()

    async def handle() -> None: ...

    inner.add_api_route("/{id}/refund", handle, methods=["POST"])
    inner.add_api_route("/other", handle, methods=["POST"])
    app.mount("/tenants/{tenant}/orders", CORSMiddleware(inner))
    routes = {"/tenants/{tenant}/orders/{id}/refund": {"required": True}}
    server = IdempotencyMiddleware(CORSMiddleware(app), InMemoryBackend(), routes=routes)
    app.add_api_route("/orders/{id}/refund", handle, methods=["POST"])
    async with connect(server) as client:
        outer = (await client.get("/openapi.json")).json()["paths"]
        shown = (await client.get("/tenants/a/orders/openapi.json")).json()["paths"]
    assert parameter_of(shown["/{id}/refund"]["post"])["required"] is True
    assert parameter_of(shown["/other"]["post"]) == {}
    assert parameter_of(outer["/orders/{id}/refund"]["post"]) == {}


async def test_a_parameter_of_the_applications_own_is_left_alone(connect: Any) -> None:
    @protected()
    async def app(idempotency_key: Annotated[str | None, Header()] = None) -> str | None:
        return idempotency_key

    operation = (await document(connect, app))["paths"]["/orders"]["post"]
    assert parameter_of(operation)["name"].lower() == "idempotency-key"
    assert parameter_of(operation)["required"] is True
    async with connect(app) as client:
        assert (await client.post("/orders")).status_code == 400
        assert (await client.post("/orders", headers=KEY)).json() == "k"


async def test_routers_and_documents_of_the_applications_own_have_it_too(connect: Any) -> None:
    app, router = FastAPI(), APIRouter(prefix="/v1")

    @router.post("/orders")
    @idempotent(InMemoryBackend())
    async def create_order() -> None: ...

    @router.post("/plain")
    async def plain() -> None: ...

    app.include_router(router)
    made = get_openapi(title="shop", version="1", routes=app.routes)
    assert parameter_of(made["paths"]["/v1/orders"]["post"])
    assert not parameter_of(made["paths"]["/v1/plain"]["post"])


async def test_a_route_that_is_added_later_is_described(connect: Any) -> None:
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, storage_backend=InMemoryBackend())
    await document(connect, app)

    @app.post("/later")
    async def later() -> None: ...

    app.openapi_schema = None
    assert parameter_of((await document(connect, app))["paths"]["/later"]["post"])
