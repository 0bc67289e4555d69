"""Runs the FastAPI programs against a provider that is a table, and a PostgreSQL server."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from fastapi.testclient import TestClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

sys.path.append(str(Path(__file__).parent.parent / "crates/idemptx-py/tests"))


class Provider:
    """A provider that charges once per key."""

    def __init__(self) -> None:
        self.charges: dict[str, int] = {}
        self.requests = 0
        self.loses_its_response = False

    def respond(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        cents = json.loads(request.content)["cents"]
        if cents == DECLINED:
            return httpx.Response(402)
        key = request.headers["Idempotency-Key"]
        self.charges.setdefault(key, cents)
        if self.loses_its_response:
            self.loses_its_response = False
            message = "the connection is lost"
            raise httpx.ReadTimeout(message)
        return httpx.Response(200, json={"id": f"charge-{list(self.charges).index(key)}"})


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Provider:
    import fastapi_app  # noqa: PLC0415

    provider = Provider()
    transport = httpx.MockTransport(provider.respond)
    client = httpx.AsyncClient(base_url="http://provider", transport=transport)
    monkeypatch.setattr(fastapi_app, "provider", client)
    return provider


@pytest.fixture
def payments(provider: Provider) -> Iterator[TestClient]:
    import fastapi_app  # noqa: PLC0415

    assert not provider.charges
    with client_of(fastapi_app.app) as client:
        yield client


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    server = import_module("postgres").PostgresServer()
    server.ask("CREATE TABLE orders (number serial PRIMARY KEY, item varchar(80) NOT NULL)")
    monkeypatch.setenv("DATABASE", server.url)
    import fastapi_sqlalchemy  # noqa: PLC0415

    with client_of(fastapi_sqlalchemy.app) as client:
        yield client
        assert server.ask("SELECT item FROM orders") == [("tea",)]
        assert client.portal is not None
        client.portal.call(fastapi_sqlalchemy.engine.dispose)
        client.portal.call(fastapi_sqlalchemy.backend.aclose)
    server.close()


def client_of(app: FastAPI) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


def post(client: TestClient, path: str, key: str, body: object) -> httpx.Response:
    response: httpx.Response = client.post(path, json=body, headers={"Idempotency-Key": key})
    return response


def test_a_retry_gets_the_same_response_and_charges_nothing(
    payments: TestClient, provider: Provider
) -> None:
    first, retry = (post(payments, "/payments", "retried", {"cents": 700}) for _ in range(2))
    assert (first.status_code, first.json()) == (201, {"charge": "charge-0"})
    assert (retry.status_code, retry.content) == (201, first.content)
    assert "idempotent-replayed" not in first.headers
    assert retry.headers["idempotent-replayed"] == "true"
    assert provider.requests == 1


def test_a_response_that_was_lost_is_no_second_charge(
    payments: TestClient, provider: Provider
) -> None:
    provider.loses_its_response = True
    assert post(payments, "/payments", "lost", {"cents": 700}).status_code == 500
    assert post(payments, "/payments", "lost", {"cents": 700}).status_code == 201
    assert provider.requests == 2
    assert list(provider.charges.values()) == [700]


def test_another_payment_under_the_same_key_is_refused(
    payments: TestClient, provider: Provider
) -> None:
    assert post(payments, "/payments", "reused", {"cents": 700}).status_code == 201
    refused = post(payments, "/payments", "reused", {"cents": 1})
    assert (refused.status_code, refused.json()["code"]) == (422, "key-reused")
    assert provider.requests == 1


def test_a_declined_card_stays_declined(payments: TestClient, provider: Provider) -> None:
    first, retry = (post(payments, "/payments", "declined", {"cents": DECLINED}) for _ in range(2))
    assert (first.status_code, retry.status_code) == (402, 402)
    assert retry.headers["idempotent-replayed"] == "true"
    assert (provider.requests, provider.charges) == (1, {})


def test_nothing_is_charged_without_a_key(payments: TestClient, provider: Provider) -> None:
    refused = payments.post("/payments", json={"cents": 700})
    assert (refused.status_code, refused.json()["code"]) == (400, "missing-key")
    assert provider.requests == 0


def test_an_order_and_its_record_are_committed_together(orders: TestClient) -> None:
    first, retry = (post(orders, "/orders", "1", {"item": "tea"}) for _ in range(2))
    assert (first.status_code, first.json()) == (201, {"order": 1})
    assert (retry.status_code, retry.content) == (201, first.content)
    assert retry.headers["idempotent-replayed"] == "true"
    assert post(orders, "/orders", "2", {"item": ""}).status_code == 422


DECLINED = 402
