"""The decorator's parameters, and the execution as its handler sees it."""
# Annotations are read at run time by FastAPI, which sees no names of enclosing functions:

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest
from fastapi import (
    FastAPI,
    Request,
    Response,
)
from fastapi.responses import (
    JSONResponse,
    StreamingResponse,
)
from idemptx import current_execution, idempotent
from idemptx.backend import InMemoryBackend
from protected import KEY, protected

pytestmark = pytest.mark.anyio

OURS = {
    b"idempotency-key",
    b"x-idempotency-signature",
    b"x-idempotency-status",
    b"idempotent-replayed",
    b"idempotency-stored",
}


async def test_an_optional_key_may_be_missing(connect: Any) -> None:
    numbers = iter(range(9))

    @protected(required=False)
    async def app() -> Any:
        return {"n": next(numbers), "key": bool(current_execution())}

    async with connect(app) as client:
        without = [await client.post("/orders") for _ in range(2)]
        with_key = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert [answer.json() for answer in without] == [{"n": n, "key": False} for n in (0, 1)]
    assert not OURS & {name for name, _ in without[0].headers.raw}
    assert [answer.json() for answer in with_key] == [{"n": 2, "key": True}] * 2


async def test_chosen_headers_are_part_of_the_signature(connect: Any) -> None:
    app, backend = FastAPI(), InMemoryBackend()

    @app.post("/version")
    @idempotent(backend, signature_headers=["X-Api-Version"])
    async def version() -> Any:
        return {}

    @app.post("/all")
    @idempotent(backend, signature_headers="all")
    async def everything() -> Any:
        return {}

    @app.post("/off")
    @idempotent(backend, validate_signature=False)
    async def off() -> Any:
        return {}

    async with connect(app) as client:

        async def status(path: str, content: bytes = b"", **headers: str) -> int:
            answer = await client.post(path, headers={**KEY, **headers}, content=content)
            return int(answer.status_code)

        assert await status("/version", **{"X-Api-Version": "1", "X-Other": "1"}) == 200
        assert await status("/version", **{"X-Api-Version": "1", "X-Other": "2"}) == 200
        assert await status("/version", **{"X-Api-Version": "2", "X-Other": "2"}) == 422
        assert await status("/all", **{"X-Other": "1"}) == 200
        each_try = {"X-Request-Id": "2", "traceparent": "2", "X-Forwarded-For": "192.0.2.2"}
        assert await status("/all", **{"X-Other": "1"}, **each_try) == 200
        assert await status("/all", **{"X-Other": "2"}) == 422
        assert await status("/off", b"one") == 200
        assert await status("/off", b"two") == 200


@pytest.mark.parametrize("key", ['"k"', "k", '"k";a=1'])
async def test_a_quoted_key_is_the_bare_one(connect: Any, key: str) -> None:
    @protected()
    async def app() -> Any:
        execution = current_execution()
        assert execution is not None
        return {"key": execution.key}

    async with connect(app) as client:
        first = await client.post("/orders", headers=KEY)
        again = await client.post("/orders", headers={"Idempotency-Key": key})
    assert first.json() == again.json() == {"key": "k"}
    assert again.headers["x-idempotency-status"] == "hit"


@pytest.mark.parametrize("key", ["a,b", "k" * 256, '"open', "a\tb", "caf\u00e9"])
async def test_a_malformed_key_is_refused(connect: Any, key: str) -> None:
    @protected()
    async def app() -> Any:
        raise AssertionError

    async with connect(app) as client:
        lines = [(b"Idempotency-Key", key.encode("latin-1"))]
        answer = await client.post("/orders", headers=lines)
        two = await client.post("/orders", headers=[("Idempotency-Key", "a")] * 2)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-key")
    assert (two.status_code, two.json()["code"]) == (400, "invalid-key")


async def test_an_applications_own_check_of_keys_is_asked(connect: Any) -> None:
    @protected(accepts=lambda key: key.startswith("ord-"))
    async def app() -> Any:
        return {}

    async with connect(app) as client:
        good = await client.post("/orders", headers={"Idempotency-Key": "ord-1"})
        bad = await client.post("/orders", headers=KEY)
    assert (good.status_code, bad.status_code) == (200, 400)
    assert bad.json()["code"] == "invalid-key"


async def test_scopes_keep_tenants_apart(connect: Any) -> None:
    async def by_tenant(request: Request) -> str | None:
        return request.headers.get("x-tenant")

    app, backend = FastAPI(), InMemoryBackend()
    numbers = iter(range(99))
    scopes = {
        "function": lambda request: request.headers.get("x-tenant"),
        "coroutine": by_tenant,
        "header": {"header": "X-Tenant"},
    }
    for name, scope in scopes.items():

        @app.post(f"/{name}")
        @idempotent(backend, scope=scope)
        async def create_order() -> Any:
            return {"n": next(numbers)}

    async with connect(app) as client:
        for name in scopes:
            alice, bob, again = [
                await client.post(f"/{name}", headers={**KEY, "X-Tenant": tenant})
                for tenant in ("alice", "bob", "alice")
            ]
            nobody = await client.post(f"/{name}", headers=KEY)
            assert alice.json() == again.json() != bob.json(), name
            assert nobody.status_code in {400, 401}, name
            assert nobody.json()["code"] == "scope-unresolved", name


async def test_by_default_a_key_is_bound_to_its_authorization(connect: Any) -> None:
    app, backend = FastAPI(), InMemoryBackend()

    @app.post("/bound")
    @idempotent(backend)
    async def bound() -> Any:
        return {}

    @app.post("/shared")
    @idempotent(backend, scope="shared")
    async def shared() -> Any:
        return {}

    async with connect(app) as client:
        for path, expected in (("/bound", 422), ("/shared", 200)):
            await client.post(path, headers={**KEY, "Authorization": "Bearer 1"})
            other = await client.post(path, headers={**KEY, "Authorization": "Bearer 2"})
            none = await client.post(path, headers=KEY)
            assert (other.status_code, none.status_code) == (expected, expected)


async def awaited(_key: str) -> bool:
    """A coroutine is true whatever it returns."""
    return False


class Awaited:
    async def __call__(self, _key: str) -> bool:
        return False


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((object(),), {}),
        (("localhost",), {}),
        ((), {"key_ttl": 0}),
        ((), {"key_ttl": -1}),
        ((), {"key_ttl": "60"}),
        ((), {"wait_timeout": -0.1}),
        ((), {"key_ttl": float("nan")}),
        ((), {"wait_timeout": float("inf")}),
        ((), {"accepts": "uuid"}),
        ((), {"accepts": awaited}),
        ((), {"accepts": functools.partial(awaited)}),
        ((), {"accepts": Awaited()}),
        ((), {"profile": "nonsense"}),
        ((), {"profile": "payments"}),
        ((), {"policy": {"leese_ms": 1}}),
        ((), {"policy": {"lease_ms": "soon"}}),
        ((), {"policy": ["lease_ms"]}),
        ((), {"policy": {"fingerprint": object()}}),
        ((), {"signature_headers": "some"}),
        ((), {"scope": "nobody"}),
    ],
)
def test_a_bad_parameter_is_refused_at_decoration(
    arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises((TypeError, ValueError)) as refused:
        idempotent(*(arguments or (InMemoryBackend(),)), **options)
    assert str(refused.value)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"required": "no"}, "required is True or False, not 'no'"),
        ({"validate_signature": "off"}, "validate_signature is True or False"),
        ({"detach": "no"}, "detach is True or False"),
        ({"profile": None}, "profile is a text, not None"),
        ({"namespace": 3}, "namespace is a text, not 3"),
        ({"probe": "bank", "policy": {"on_orphan": "probe"}}, "probe is a function, not 'bank'"),
        ({"policy": {"scope": lambda _: "me"}}, "give it as the parameter `scope`"),
    ],
)
def test_what_is_taken_for_something_else_is_named(options: dict[str, Any], advice: str) -> None:
    with pytest.raises(TypeError) as refused:
        idempotent(InMemoryBackend(), **options)
    assert advice in str(refused.value)


@pytest.mark.parametrize(
    ("methods", "advice"),
    [
        ("POST", "write a list"),
        (["post"], "write methods in capitals"),
        ([], "nothing would match"),
        (["PURGE"], "nothing would match"),
    ],
)
def test_methods_that_no_route_can_have_are_refused(methods: Any, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        idempotent(InMemoryBackend(), policy={"methods": methods})


def test_flags_may_be_numbers() -> None:
    for flag in (0, 1):
        assert idempotent(InMemoryBackend(), required=flag, validate_signature=flag)


# The execution, as the handler sees it.


async def test_a_handler_sees_its_execution(connect: Any) -> None:
    @protected()
    def app() -> Any:
        execution = current_execution()
        assert execution is not None
        assert not execution.is_lost
        assert "secret-key" not in repr(execution)
        return {
            "key": execution.key,
            "attempt": execution.attempt,
            "token": execution.token,
            "fence": execution.fence,
            "charge": execution.derive("charge"),
            "again": execution.derive("charge"),
            "mail": execution.derive("mail"),
        }

    assert current_execution() is None
    async with connect(app) as client:
        key = {"Idempotency-Key": '"secret-key"'}
        seen = (await client.post("/orders", headers=key)).json()
        other = (await client.post("/orders", headers=KEY)).json()
    assert current_execution() is None
    assert (seen["key"], seen["attempt"]) == ("secret-key", 1)
    assert seen["charge"] == seen["again"] != seen["mail"]
    assert seen["charge"] != other["charge"]
    assert seen["token"] != other["token"]
    assert seen["fence"] >= 0


@pytest.mark.parametrize("through", ["header", "execution"])
@pytest.mark.parametrize(
    ("outcome", "second", "calls_expected"),
    [("store", 503, 1), ("release", 503, 2), ("unknown", 409, 1)],
)
async def test_a_handler_directs_its_outcome(
    connect: Any, through: str, outcome: Any, second: int, calls_expected: int
) -> None:
    calls = 0

    @protected()
    async def app(response: Response) -> Any:
        nonlocal calls
        calls += 1
        response.status_code = 503
        if through == "header":
            response.headers["Idempotency-Outcome"] = outcome
        else:
            execution = current_execution()
            assert execution is not None
            execution.direct(outcome)
        return {"n": 1}

    async with connect(app) as client:
        answers = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [503, second]
    assert calls == calls_expected
    assert all("idempotency-outcome" not in answer.headers for answer in answers)
    stored = "idempotency-stored" not in answers[0].headers
    assert stored == (outcome == "store")


@pytest.mark.parametrize("on_panic", ["release", "quarantine"])
@pytest.mark.parametrize(
    ("outcome", "code", "calls_expected"),
    [("store", "result-unavailable", 1), ("unknown", "outcome-unknown", 1), ("release", "", 2)],
)
async def test_what_a_handler_has_directed_counts_although_it_then_raises(
    connect: Any, on_panic: str, outcome: Any, code: str, calls_expected: int
) -> None:
    calls = 0

    @protected(policy={"on_panic": on_panic})
    async def app() -> Any:
        nonlocal calls
        calls += 1
        execution = current_execution()
        assert execution is not None
        execution.direct(outcome)
        if calls == 1:
            raise RuntimeError
        return {}

    async with connect(app) as client:
        first, second = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert first.status_code == 500
    assert second.json().get("code", "") == code
    assert calls == calls_expected


async def test_an_unknown_direction_is_refused(connect: Any) -> None:
    @protected()
    async def app() -> Any:
        execution = current_execution()
        assert execution is not None
        with pytest.raises(ValueError, match="store, release or unknown"):
            execution.direct("keep")  # type: ignore[arg-type]
        return {}

    async with connect(app) as client:
        assert (await client.post("/orders", headers=KEY)).status_code == 200


async def leave_an_orphan(connect: Any, app: FastAPI) -> None:
    """Executes in an event loop that ends under it; the handler sets `began` and waits."""

    async def vanish() -> None:
        began = app.state.began = asyncio.Event()
        async with connect(app) as client:
            sending = asyncio.create_task(client.post("/orders", headers=KEY))
            await began.wait()
            sending.cancel()

    await asyncio.to_thread(asyncio.run, vanish())


async def after_the_lease(post: Any) -> Any:
    """Sends a request until the claim that it meets has lapsed."""
    for _ in range(100):
        answer = await post()
        if answer.status_code != 409 or answer.json()["code"] != "in-progress":
            return answer
        await asyncio.sleep(0.05)
    pytest.fail("the lease does not lapse")


async def test_retries_of_an_orphan_share_one_call_of_the_probe(connect: Any) -> None:
    app, go = FastAPI(), asyncio.Event()
    calls: list[str] = []

    async def probe(_orphan: Any) -> Any:
        calls.append("began")
        await go.wait()
        calls.append("ended")
        return JSONResponse({"n": "found"}, 201)

    policy = {"on_orphan": "probe", "lease_ms": 200, "waiters_max": 100}

    @app.post("/orders")
    @idempotent(InMemoryBackend(), probe=probe, policy=policy)
    async def create_order() -> Any:
        app.state.began.set()
        await asyncio.Event().wait()

    await leave_an_orphan(connect, app)
    async with connect(app) as client:
        first = asyncio.create_task(after_the_lease(lambda: client.post("/orders", headers=KEY)))
        while not calls:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(client.post("/orders", headers=KEY)) for _ in range(20)]
        for _ in range(200):
            await asyncio.sleep(0)
        assert calls == ["began"]
        go.set()
        answers = [await first, *(await asyncio.gather(*others))]
    assert {it.status_code for it in answers} <= {201, 409}
    assert all(it.json() == {"n": "found"} for it in answers if it.status_code == 201)
    assert answers[0].status_code == 201
    assert calls == ["began", "ended"]


@pytest.mark.parametrize("knows", ["nothing", "it did not happen", "it happened"])
async def test_the_probe_decides_about_an_orphan(connect: Any, knows: str) -> None:
    """The orphan is an execution of an event loop that ended under it."""
    asked: list[tuple[str, int]] = []
    backend = InMemoryBackend()
    calls = 0

    async def probe(orphan: Any) -> Any:
        asked.append((orphan.key, orphan.attempt))
        if knows == "it happened":
            return JSONResponse({"n": "found"}, 201)
        return None if knows == "nothing" else False

    @protected(backend, probe=probe, policy={"on_orphan": "probe", "lease_ms": 200})
    async def app() -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            app.state.began.set()
            await asyncio.Event().wait()
        execution = current_execution()
        assert execution is not None
        return JSONResponse({"n": calls, "attempt": execution.attempt}, 201)

    await leave_an_orphan(connect, app)
    async with connect(app) as client:
        answer = await after_the_lease(lambda: client.post("/orders", headers=KEY))
    assert asked[0] == ("k", 1)
    if knows == "nothing":
        assert (answer.status_code, answer.json()["code"], calls) == (409, "outcome-unknown", 1)
    elif knows == "it happened":
        assert (answer.status_code, answer.json(), calls) == (201, {"n": "found"}, 1)
    else:
        assert (answer.status_code, answer.json()) == (201, {"n": 2, "attempt": 2})


@pytest.mark.parametrize("found", [True, {"n": "found"}, StreamingResponse(iter(["found"]))])
async def test_a_probe_that_returns_no_answer_knows_nothing(
    connect: Any, caplog: Any, found: Any
) -> None:
    @protected(
        InMemoryBackend(),
        probe=lambda _: found,
        policy={"on_orphan": "probe", "lease_ms": 200},
    )
    async def app() -> Any:
        app.state.began.set()
        await asyncio.Event().wait()

    await leave_an_orphan(connect, app)
    async with connect(app) as client:
        answer = await after_the_lease(lambda: client.post("/orders", headers=KEY))
    assert (answer.status_code, answer.json()["code"]) == (409, "outcome-unknown")
    assert "a probe returns None, False, or a Response" in caplog.text
