"""What the payment service promises, against a provider that is a table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import pytest
from fastapi.testclient import TestClient

import payments

if TYPE_CHECKING:
    from collections.abc import Iterator


class Bank:
    """A provider that keeps its word about keys."""

    def __init__(self) -> None:
        self.charges: dict[str, int] = {}
        self.asked = 0
        self.loses_its_answer = False

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        asked = json.loads(request.content)
        if asked["card"] == "declined":
            return httpx.Response(402)
        key = request.headers["Idempotency-Key"]
        self.charges.setdefault(key, asked["amount_cents"])
        if self.loses_its_answer:
            self.loses_its_answer = False
            message = "the line is dead"
            raise httpx.ReadTimeout(message)
        return httpx.Response(200, json={"id": f"charge-{list(self.charges).index(key)}"})


@pytest.fixture
def bank() -> Bank:
    return Bank()


@pytest.fixture
def client(bank: Bank) -> Iterator[TestClient]:
    with TestClient(payments.app, raise_server_exceptions=False) as client:
        transport = httpx.MockTransport(bank.answer)
        connection = httpx.AsyncClient(base_url="http://bank", transport=transport)
        payments.app.state.provider = payments.Provider(connection)
        yield client


def pay(
    client: TestClient, key: str, *, tenant: str = "alice", amount: int = 700, card: str = "visa"
) -> httpx.Response:
    answer: httpx.Response = client.post(
        "/payments",
        json={"amount_cents": amount, "currency": "EUR", "card": card},
        headers={"Idempotency-Key": key, "Authorization": f"Bearer token-of-{tenant}"},
    )
    return answer


def test_a_retry_gets_the_same_receipt_and_charges_nothing(client: TestClient, bank: Bank) -> None:
    first, retry = pay(client, "retried"), pay(client, "retried")
    assert (first.status_code, first.json()["amount_cents"]) == (201, 700)
    assert (retry.status_code, retry.content) == (201, first.content)
    assert "idempotent-replayed" not in first.headers
    assert retry.headers["idempotent-replayed"] == "true"
    assert bank.asked == 1


def test_an_answer_that_was_lost_on_the_way_is_no_second_charge(
    client: TestClient, bank: Bank
) -> None:
    bank.loses_its_answer = True
    assert pay(client, "lost").status_code == 500
    assert pay(client, "lost").status_code == 201
    assert bank.asked == 2
    assert list(bank.charges.values()) == [700]


def test_another_tenant_has_keys_of_its_own(client: TestClient, bank: Bank) -> None:
    alices, bobs = pay(client, "shared"), pay(client, "shared", tenant="bob")
    assert alices.json()["charge"] != bobs.json()["charge"]
    assert len(bank.charges) == 2


def test_another_payment_under_the_same_key_is_refused(client: TestClient, bank: Bank) -> None:
    assert pay(client, "reused").status_code == 201
    refused = pay(client, "reused", amount=1)
    assert (refused.status_code, refused.json()["code"]) == (422, "key-reused")
    assert bank.asked == 1


def test_a_declined_card_stays_declined(client: TestClient, bank: Bank) -> None:
    first, retry = (
        pay(client, "declined", card="declined"),
        pay(client, "declined", card="declined"),
    )
    assert (first.status_code, retry.status_code) == (402, 402)
    assert retry.headers["idempotent-replayed"] == "true"
    assert (bank.asked, bank.charges) == (1, {})


def test_nothing_is_charged_without_a_key_or_a_known_token(client: TestClient, bank: Bank) -> None:
    body = {"amount_cents": 700, "currency": "EUR", "card": "visa"}
    keyless = client.post(
        "/payments", json=body, headers={"Authorization": "Bearer token-of-alice"}
    )
    assert (keyless.status_code, keyless.json()["code"]) == (400, "missing-key")
    assert pay(client, "stranger", tenant="mallory").status_code == 401
    assert bank.asked == 0
