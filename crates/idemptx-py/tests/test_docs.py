"""Runs what the guide and the README's Python section show, and looks at what comes of it."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import idemptx
import pytest
import starlette.exceptions
from fastapi import HTTPException, Response
from fastapi.responses import JSONResponse
from guide import (
    GUIDE,
    GUIDE_SECTIONS,
    QUICK_START,
    README,
    WITH_PYTHON,
    Block,
    Names,
    Send,
    converse,
    counter,
    follow,
    names_after,
    sections,
    with_counter,
)

if TYPE_CHECKING:
    from pathlib import Path

# FastAPI's test client wants another package than the one that it works with as well.
pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx`")


# What the documents show, run as it stands there


def test_the_readme_program_answers_as_it_says(redis_url: str, tmp_path: Path) -> None:
    program = [block for block in sections(README)["Try it"] if block.language == "python"]
    console = """
$ uvicorn main:app --port 8000
$ curl -i http://127.0.0.1:8000/orders -H 'Idempotency-Key: 8e03978e' --json '{"item":"tea"}'
HTTP/1.1 200 OK
x-idempotency-status: new
{"order":4711}
$ curl -i http://127.0.0.1:8000/orders -H 'Idempotency-Key: 8e03978e' --json '{"item":"tea"}'
HTTP/1.1 200 OK
x-idempotency-status: hit
idempotent-replayed: true
{"order":4711}
"""
    follow([*program, Block("console", console)], redis_url, tmp_path)


def test_the_quick_start_answers_as_it_says(redis_url: str, tmp_path: Path) -> None:
    follow(GUIDE_SECTIONS[QUICK_START], redis_url, tmp_path)


def test_the_server_of_the_deployment_section_starts_and_drains(
    redis_url: str, tmp_path: Path
) -> None:
    program = [block for block in GUIDE_SECTIONS[QUICK_START] if block.language == "python"]
    console = [block for block in GUIDE_SECTIONS["Deployment"] if block.language == "console"]
    assert console
    follow(program + console, redis_url, tmp_path)


@pytest.mark.parametrize("heading", WITH_PYTHON)
def test_the_snippets_of_each_section_run(heading: str, redis_url: str) -> None:
    assert names_after(heading, redis_url)["app"]


def test_no_block_of_the_guide_is_in_a_language_that_nothing_runs() -> None:
    languages = {block.language for blocks in GUIDE_SECTIONS.values() for block in blocks}
    assert languages == {"python", "console"}


# What the guide claims of its snippets


def test_the_middleware_covers_the_routes_that_it_is_given(redis_url: str) -> None:
    names = names_after("The middleware", redis_url)
    for path in ("/payments", "/payments/preview", "/payments/card", "/invoices", "/other"):
        names["app"].post(path, status_code=201)(counter())

    async def talk(send: Send) -> None:
        assert (await send("/payments/card")).status_code == 400
        for path, replayed in [
            ("/payments/card", True),
            ("/payments/preview", False),
            ("/invoices", True),
            ("/other", False),
        ]:
            first, second = [await send(path, key=f"key-of{path}") for _ in range(2)]
            assert first.status_code == second.status_code == 201
            assert (first.content == second.content) is replayed
            assert ("Idempotent-Replayed" in second.headers) is replayed

    converse(names, talk)


def test_a_policy_and_explicit_parameters_apply_together(redis_url: str) -> None:
    async def talk(send: Send) -> None:
        first = await send("/payments", key="k", content='{"item":"tea"}')
        reformatted = await send("/payments", key="k", content='{ "item": "tea" }')
        assert first.status_code == 201
        assert reformatted.headers["Idempotent-Replayed"] == "true"

    converse(names_after("Profiles and policies", redis_url), talk)


def test_the_payments_profile_asks_for_a_scope(redis_url: str) -> None:
    names = names_after(QUICK_START, redis_url)
    with pytest.raises(ValueError, match="scope"):
        names["idempotent"](names["backend"], profile="payments")


def test_a_request_that_fails_validation_is_stored_by_the_middleware_alone(redis_url: str) -> None:
    names = names_after("The middleware", redis_url)

    async def invoice(wish: Any) -> str:
        return str(wish.item)

    invoice.__annotations__["wish"] = names["Order"]
    names["app"].post("/invoices")(invoice)

    async def talk(send: Send) -> None:
        for path, replayed in [("/orders", False), ("/invoices", True)]:
            for number in range(2):
                answer = await send(path, key=f"key-of{path}", content="{}")
                assert answer.status_code == 422
                assert ("Idempotent-Replayed" in answer.headers) is (replayed and number == 1)
            corrected = await send(path, key=f"key-of{path}")
            assert corrected.status_code in (200, 201)

    converse(names, talk)


def test_a_key_belongs_to_its_scope(redis_url: str) -> None:
    names = names_after("Whose keys", redis_url)

    async def authenticate(request: Any, call_next: Any) -> Any:
        request.state.account = request.headers.get("X-Test-Account")
        return await call_next(request)

    names["app"].middleware("http")(authenticate)

    async def talk(send: Send) -> None:
        refused = await send("/transfers", key="k")
        assert (refused.status_code, refused.json()["code"]) == (401, "scope-unresolved")
        for status in ("new", "hit"):
            for account in ("a", "b"):
                answer = await send("/transfers", key="k", headers={"X-Test-Account": account})
                assert answer.headers["X-Idempotency-Status"] == status

    converse(names, talk)


def test_without_a_scope_a_key_is_bound_to_its_authorization(redis_url: str) -> None:
    async def talk(send: Send) -> None:
        mine = {"Authorization": "Bearer mine"}
        assert (await send("/orders", key="k", headers=mine)).status_code == 201
        for others in ({"Authorization": "Bearer other"}, {}):
            assert (await send("/orders", key="k", headers=others)).status_code == 422
        assert (await send("/orders", key="k", headers=mine)).status_code == 201

    converse(names_after(QUICK_START, redis_url), talk)


def test_a_handler_derives_keys_and_directs_its_outcome(redis_url: str) -> None:
    async def talk(send: Send) -> None:
        charge = (await send("/charges", key="k")).json()
        assert charge["attempt"] == 1
        assert charge["psp_key"] != (await send("/charges", key="other")).json()["psp_key"]
        for status in ("new", "hit"):
            answer = await send("/refunds", key="k")
            assert answer.status_code == 502
            assert answer.headers["X-Idempotency-Status"] == status
            assert "Idempotency-Stored" not in answer.headers
        assert (await send("/wires", key="k")).status_code == 201

    converse(names_after("In the handler", redis_url), talk)


@pytest.mark.parametrize(
    ("status", "retried", "corrected"),
    [
        *[(status, "hit", "mismatch") for status in (200, 303, 402, 410, 418)],
        *[(status, "hit", "new") for status in (400, 422)],
        *[(status, "new", "new") for status in (307, 401, 403, 404, 405, 408, 409, 412, 413)],
        *[(status, "new", "new") for status in (415, 421, 423, 425, 428, 429, 431)],
        *[(status, "new", "new") for status in (500, 502, 503)],
    ],
)
def test_what_becomes_of_an_answer_depends_on_its_status(
    redis_url: str, status: int, retried: str, corrected: str
) -> None:
    names = names_after(QUICK_START, redis_url)

    @names["app"].post("/answers")
    @names["idempotent"](names["backend"])
    async def answer() -> None:
        raise HTTPException(status)

    async def talk(send: Send) -> None:
        first = await send("/answers", key="k")
        assert first.status_code == status
        assert ("Idempotency-Stored" in first.headers) is (retried == "new")
        assert (await send("/answers", key="k")).headers["X-Idempotency-Status"] == retried
        changed = await send("/answers", key="k", content='{"item":"coffee"}')
        assert changed.headers["X-Idempotency-Status"] == corrected
        assert changed.status_code == (status if corrected == "new" else 422)

    converse(names, talk)


def test_refusals_are_problems_unless_the_application_handles_them(redis_url: str) -> None:
    names = names_after("Refusals", redis_url)
    entered, go_on = asyncio.Event(), asyncio.Event()

    @names["app"].post("/slow")
    @names["idempotent"](names["backend"])
    async def slow() -> None:
        entered.set()
        await go_on.wait()

    async def talk(send: Send) -> None:
        missing = await send("/slow")
        assert (missing.status_code, missing.json()["code"]) == (400, "missing-key")
        assert missing.headers["Content-Type"] == "application/problem+json"
        first = asyncio.create_task(send("/slow", key="k"))
        await entered.wait()
        reused = await send("/slow", key="k", content="{}")
        assert (reused.status_code, reused.json()["code"]) == (422, "key-reused")
        busy = await send("/slow", key="k")
        go_on.set()
        await first
        assert busy.status_code == 409
        assert busy.json() == {
            "error": "Request is being processed. Try again later.",
            "code": "in-progress",
        }
        assert "Retry-After" in busy.headers

    converse(names, talk)


def test_exceptions_have_the_classes_and_statuses_of_the_table() -> None:
    rows = re.findall(
        r"^\| `(\w+Exception)` \| (\d{3}) \| `([a-z-]+)` \|", GUIDE.read_text(), re.MULTILINE
    )
    assert len(rows) == 3
    for name, status, code in rows:
        error = getattr(idemptx, name)("text")
        assert isinstance(error, idemptx.IdempotencyException)
        assert isinstance(error, starlette.exceptions.HTTPException)
        assert (str(error.status_code), error.code, str(error)) == (status, code, "text")
    for name in ("ConflictRequestException", "RequestInProgressException"):
        assert issubclass(getattr(idemptx, name), idemptx.IdempotencyConflictException)


def test_duplicates_wait_for_the_first(redis_url: str) -> None:
    names = names_after("Duplicates that wait", redis_url)

    async def talk(send: Send) -> None:
        answers = await asyncio.gather(*[send("/reports", key="k") for _ in range(8)])
        assert {answer.status_code for answer in answers} == {200}
        statuses = sorted(answer.headers["X-Idempotency-Status"] for answer in answers)
        assert statuses == ["hit"] * 7 + ["new"]

    converse(names, talk)


def test_backends_use_the_transports_of_the_table(
    redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = names_after("Backends", redis_url)
    transports, schema = capsys.readouterr().out.split("\n", 1)
    assert transports.split() == ["in-loop", "in-loop", "memory"]
    assert 'CREATE TABLE "idemptx"."records"' in schema
    assert names["with_prefix"].transport == "in-loop"
    assert names["on_this_host"].transport == "sqlite"
    assert names["in_the_database"].transport == "postgres"

    async def talk(send: Send) -> None:
        for status in ("new", "hit"):
            assert (await send("/notes", key="k")).headers["X-Idempotency-Status"] == status

    converse(names, talk)


def test_a_sale_is_committed_together_with_its_record(redis_url: str, postgres_server: Any) -> None:
    postgres_server.ask("DROP TABLE IF EXISTS sales")
    postgres_server.ask("CREATE TABLE sales (item text NOT NULL)")
    names = names_after("Exactly once", redis_url, postgres_server.url)

    async def talk(send: Send) -> None:
        for path in ("/sales", "/orders/by-hand"):
            for status in ("new", "hit"):
                answer = await send(path, key=f"key-of{path}")
                assert (answer.status_code, answer.json()) == (201, {"sold": "tea"})
                assert answer.headers["X-Idempotency-Status"] == status
        trip = await send("/trips", key="k")
        assert trip.json() == {"charge": trip.json()["charge"], "ticket": "t_1"}
        assert await idemptx.drain(10)
        await names["in_postgres"].aclose()

    converse(names, talk)
    assert postgres_server.ask("SELECT item FROM sales") == [("tea",), ("tea",)]


def test_the_lifespan_of_the_deployment_section_drains(redis_url: str) -> None:
    # Not above: it warns when it is imported.
    from fastapi.testclient import TestClient  # noqa: PLC0415

    names = names_after("Deployment", redis_url)
    names["app"].post("/orders")(names["idempotent"](names["backend"])(counter()))
    with TestClient(names["app"]) as client:
        assert client.post("/orders", headers={"Idempotency-Key": "k"}).status_code == 200


@pytest.mark.parametrize(
    ("parameters", "status"),
    [({}, 422), ({"policy": {"mismatch_status": 409}}, 409)],
)
def test_the_status_of_a_changed_request_can_be_as_before(
    redis_url: str, parameters: Names, status: int
) -> None:
    async def talk(send: Send) -> None:
        await send("/count", key="k")
        assert (await send("/count", key="k", content="{}")).status_code == status

    converse(with_counter(redis_url, **parameters), talk)


@pytest.mark.parametrize(("signature_headers", "status"), [((), 200), ("all", 422)])
def test_a_signature_over_all_headers_can_be_had_as_before(
    redis_url: str, signature_headers: Any, status: int
) -> None:
    async def talk(send: Send) -> None:
        await send("/count", key="k")
        again = await send("/count", key="k", headers={"User-Agent": "another"})
        assert again.status_code == status

    converse(with_counter(redis_url, signature_headers=signature_headers), talk)


def test_keys_can_be_everybodys_as_before(redis_url: str) -> None:
    async def talk(send: Send) -> None:
        for status, owner in [("new", "a"), ("hit", "b")]:
            answer = await send("/count", key="k", headers={"Authorization": owner})
            assert answer.headers["X-Idempotency-Status"] == status

    converse(with_counter(redis_url, scope="shared"), talk)


def test_server_errors_can_be_stored_as_before(redis_url: str) -> None:
    row = next(line for line in GUIDE.read_text().splitlines() if line.startswith("| 5xx, 401"))
    policy = eval(re.search(r"`policy=(\{.*\})`", row)[1])  # what the table says, no input

    names = names_after(QUICK_START, redis_url)

    @names["app"].post("/fails/{status}")
    @names["idempotent"](names["backend"], policy=policy)
    async def fails(status: int) -> JSONResponse:
        return JSONResponse({}, status)

    async def talk(send: Send) -> None:
        for path in ("/fails/500", "/fails/409"):
            await send(path, key="k")
            assert (await send(path, key="k")).headers["X-Idempotency-Status"] == "hit"

    converse(names, talk)


def test_cookies_can_be_replayed_as_before(redis_url: str) -> None:
    row = next(line for line in GUIDE.read_text().splitlines() if line.startswith("| `Set-Cookie`"))
    policy = eval(re.search(r"`policy=(\{.*\})`", row)[1])  # what the table says, no input

    for parameters, kept in [({}, []), ({"policy": policy}, ["a=1", "b=2"])]:
        names = names_after(QUICK_START, redis_url)

        @names["app"].post(f"/cookies/{len(kept)}")
        @names["idempotent"](names["backend"], **parameters)
        async def cookies() -> Response:
            response = Response()
            response.headers.append("Set-Cookie", "a=1")
            response.headers.append("Set-Cookie", "b=2")
            return response

        async def talk(send: Send) -> None:
            path = f"/cookies/{len(kept)}"  # noqa: B023 - called at once
            await send(path, key="k")
            replay = await send(path, key="k")
            assert replay.headers["X-Idempotency-Status"] == "hit"
            assert replay.headers.get_list("Set-Cookie") == kept  # noqa: B023

        converse(names, talk)


def test_the_guard_refuses_what_the_original_package_remembers(redis_url: str) -> None:
    names = names_after("Coming from idemptx 0.2", redis_url)

    async def talk(send: Send) -> None:
        try:
            await names["old"].set("idempotency:idempotency:/orders:done", "{}")
            await names["old"].set("idempotency:idempotency:/orders:running:lock", "1")
            for key, status in [("done", 409), ("running", 409), ("fresh", 201)]:
                assert (await send("/orders", key=key)).status_code == status
        finally:
            await names["old"].aclose()

    converse(names, talk)
