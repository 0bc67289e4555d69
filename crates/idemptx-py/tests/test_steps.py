"""Recovery points: steps of a handler whose results outlive it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import inspect
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.responses import PlainTextResponse
from idemptx import IdempotencyMiddleware, RecoveryException, current_execution
from idemptx.backend import InMemoryBackend, RedisBackend, from_url
from protected import protected
from protocol import KEY
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemptx import Execution

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "redis", "sqlite", "postgres", "adapter"])
def backend(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    if request.param == "memory":
        return InMemoryBackend()
    if request.param == "sqlite":
        return from_url(f"sqlite:{tmp_path}/records.db")
    if request.param == "postgres":
        return from_url(request.getfixturevalue("postgres_server").url)
    server = request.getfixturevalue("redis_server")
    return RedisBackend(server.url) if request.param == "redis" else _Own(server.url)


class _Own(RedisBackend):
    """A subclass with its own way of keeping things: reached through its methods."""

    def __init__(self, url: str) -> None:
        import redis  # noqa: PLC0415

        super().__init__(redis.Redis.from_url(url))

    def set(self, key: str, value: dict[str, Any], ttl: int) -> None:
        super().set(key, value, ttl)


def _here() -> Execution:
    execution = current_execution()
    assert execution is not None
    return execution


async def test_a_step_runs_once_in_all_attempts(connect: Any, backend: Any) -> None:
    calls: list[str] = []

    @protected(backend, path="/pay")
    async def app() -> dict[str, Any]:
        execution = _here()

        async def charge() -> dict[str, Any]:
            calls.append("charge")
            return {"id": "c_1", "amounts": (1, 2)}

        charged = await execution.step("charge", charge)
        booked = await execution.step("book", lambda: calls.append("book") or len(calls))
        if calls.count("attempt") == 0:
            calls.append("attempt")
            raise RuntimeError("oops")
        return {"charged": charged, "booked": booked}

    async with connect(app) as client:
        assert (await client.post("/pay", headers=KEY)).status_code == 500
        second = await client.post("/pay", headers=KEY)
        assert second.json() == {"charged": {"id": "c_1", "amounts": [1, 2]}, "booked": 2}
        # Another operation has other steps.
        other = await client.post("/pay", headers={"Idempotency-Key": "other"})
    assert other.json()["booked"] == 5
    assert calls == ["charge", "book", "attempt", "charge", "book"]
    await _close(backend)


async def test_a_plain_function_has_steps_too(connect: Any, backend: Any) -> None:
    calls: list[str] = []

    @protected(backend, path="/pay")
    def app() -> dict[str, Any]:
        def charge() -> str:
            calls.append("charge")
            return "c_1"

        charged = _here().blocking_step("charge", charge)
        calls.append("attempt")
        if len(calls) == 2:
            raise RuntimeError("oops")
        return {"charged": charged}

    async with connect(app) as client:
        assert (await client.post("/pay", headers=KEY)).status_code == 500
        assert (await client.post("/pay", headers=KEY)).json() == {"charged": "c_1"}
    assert calls == ["charge", "attempt", "attempt"]
    await _close(backend)


@pytest.mark.parametrize("mistake", ["step", "coroutine"])
async def test_a_plain_function_that_would_run_no_step_is_told_and_keeps_its_key(
    connect: Any, mistake: str
) -> None:
    told: list[str] = []

    async def charge() -> str:
        raise AssertionError("it has run")

    @protected(path="/pay")
    def app() -> str:
        here = _here()
        try:
            if mistake == "step":
                here.step("charge", lambda: "c_1")
            here.blocking_step("charge", charge)
        except (RuntimeError, TypeError) as error:
            told.append(str(error))
            if len(told) == 1:
                raise
        return here.blocking_step("charge", lambda: "c_1")

    async with connect(app) as client:
        assert (await client.post("/pay", headers=KEY)).status_code == 500
        assert (await client.post("/pay", headers=KEY)).json() == "c_1"
    assert len(told) == 2
    assert "plain" in told[0]


async def test_what_fails_is_not_kept(connect: Any, backend: Any) -> None:
    calls: list[int] = []

    @protected(backend, path="/pay")
    async def app() -> int:
        def charge() -> int:
            calls.append(1)
            if len(calls) == 1:
                raise RuntimeError("declined")
            return len(calls)

        return await _here().step("charge", charge)

    async with connect(app) as client:
        assert (await client.post("/pay", headers=KEY)).status_code == 500
        assert (await client.post("/pay", headers=KEY)).json() == 2
    await _close(backend)


async def test_a_step_belongs_to_its_request(connect: Any) -> None:
    """A key that was released may be used for another request, whose steps are not the first's."""
    backend = InMemoryBackend()
    raised: list[str] = []

    @protected(backend, path="/pay")
    async def app(body: dict[str, int]) -> int:
        try:
            paid = await _here().step("charge", lambda: body["amount"])
        except ValueError as error:
            raised.append(str(error))
        else:
            assert paid == body["amount"]
        raise RuntimeError("oops")

    async with connect(app) as client:
        await client.post("/pay", headers=KEY, json={"amount": 1})
        await client.post("/pay", headers=KEY, json={"amount": 2})
    assert len(raised) == 1
    assert "other content" in raised[0]


@pytest.mark.parametrize(
    ("label", "result", "advice"),
    [
        ("", 1, "1 to 255 bytes"),
        ("x" * 256, 1, "1 to 255 bytes"),
        ("nan", float("nan"), "JSON"),
        ("object", object(), "JSON"),
        ("large", "x" * 2_000_000, "response_bytes_max"),
    ],
)
async def test_a_step_that_cannot_be_meant_says_why(
    connect: Any, label: str, result: Any, advice: str
) -> None:
    raised: list[str] = []

    async def pay() -> None:
        with pytest.raises((TypeError, ValueError)) as refused:
            await _here().step(label, lambda: result)
        raised.append(str(refused.value))

    await _run(connect, InMemoryBackend(), pay)
    assert advice in raised[0]


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("result", [object(), math.nan, "x" * 2_000_000, ENDLESS])
async def test_a_step_whose_result_cannot_be_kept_never_runs_again(
    connect: Any, backend: Any, result: Any, is_async: bool
) -> None:
    calls: list[str] = []
    raised: list[Exception] = []

    def charge() -> Any:
        calls.append("charge")
        return result

    async def pay() -> None:
        try:
            await _here().step("charge", charge)
        except Exception as error:
            raised.append(error)
            raise

    def pay_blocking() -> None:
        try:
            _here().blocking_step("charge", charge)
        except Exception as error:
            raised.append(error)
            raise

    app = protected(backend, path="/pay")(pay if is_async else pay_blocking)
    async with connect(app) as client:
        answers = [await client.post("/pay", headers=KEY) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [500, 409, 409]
    assert {answer.json()["code"] for answer in answers[1:]} == {"outcome-unknown"}
    assert calls == ["charge"]
    assert len(raised) == 1
    assert isinstance(raised[0], TypeError | ValueError)
    assert "'charge' has run, will not run again" in str(raised[0])
    await _close(backend)


@pytest.mark.parametrize("is_answered", [True, False])
async def test_under_the_middleware_such_a_step_never_runs_again_either(
    connect: Any, is_answered: bool
) -> None:
    calls: list[str] = []
    app = FastAPI()

    @app.post("/pay")
    async def pay() -> None:
        await _here().step("charge", lambda: calls.append("charge") or object())

    if is_answered:
        # Its answer counts by its status: the key is given up, and the step is not.
        app.add_exception_handler(TypeError, lambda *_: PlainTextResponse("oops", 500))
        app.add_exception_handler(RecoveryException, lambda *_: PlainTextResponse("oops", 500))
    app.add_middleware(IdempotencyMiddleware, storage_backend=InMemoryBackend())
    async with connect(app) as client:
        statuses = [(await client.post("/pay", headers=KEY)).status_code for _ in range(3)]
    assert statuses == ([500, 500, 500] if is_answered else [500, 409, 409])
    assert calls == ["charge"]


async def test_a_handler_that_goes_on_without_the_result_is_answered_and_never_repeats_it(
    connect: Any, backend: Any
) -> None:
    calls: list[str] = []
    raised: list[type[Exception]] = []

    @protected(backend, path="/pay")
    async def app() -> dict[str, str]:
        try:
            await _here().step("charge", lambda: calls.append("charge") or object())
        except Exception as error:  # noqa: BLE001 - whatever it is
            raised.append(type(error))
        if len(raised) == 1:
            raise HTTPException(503)
        return {"charged": "somehow"}

    async with connect(app) as client:
        answers = [await client.post("/pay", headers=KEY) for _ in range(2)]
        replay = await client.post("/pay", headers=KEY)
    assert [answer.status_code for answer in answers] == [503, 200]
    assert replay.headers["idempotent-replayed"] == "true"
    assert calls == ["charge"]
    assert raised == [TypeError, RecoveryException]
    await _close(backend)


class Charge(BaseModel):
    id: str
    at: dt.datetime
    amount: Decimal


@dataclasses.dataclass
class Point:
    x: int
    at: dt.date


NEW_YEAR = dt.datetime(2030, 1, 1, tzinfo=dt.timezone.utc)
CHARGE = Charge(id="c_1", at=NEW_YEAR, amount=Decimal("1.10"))
POINT = Point(1, dt.date(2030, 1, 2))


def charge() -> Charge:
    return CHARGE


async def charge_later() -> Charge:
    return CHARGE


def point() -> Point:
    return POINT


def moments() -> list[dt.datetime]:
    return [CHARGE.at]


def numbers() -> set[int]:
    return {1, 2}


def nothing() -> None:
    return None


def raw() -> bytes:
    return b"\xff\x00"


def bounds() -> list[float]:
    return [math.inf, -math.inf]


@pytest.mark.parametrize(
    "call", [charge, charge_later, point, moments, numbers, nothing, raw, bounds]
)
async def test_a_step_gives_the_type_that_is_hinted_in_each_attempt(
    connect: Any, backend: Any, call: Any
) -> None:
    seen: list[Any] = []

    @protected(backend, path="/pay")
    async def app() -> str:
        seen.append(await _here().step("charge", call))
        if len(seen) == 1:
            raise RuntimeError("oops")
        return "paid"

    async with connect(app) as client:
        statuses = [(await client.post("/pay", headers=KEY)).status_code for _ in range(2)]
    expected = call()
    if inspect.isawaitable(expected):
        expected = await expected
    assert statuses == [500, 200]
    assert seen == [expected, expected]
    assert type(seen[0]) is type(seen[1]) is type(expected)
    await _close(backend)


async def test_a_lambda_has_no_hint_but_may_be_given_one(connect: Any) -> None:
    seen: list[Any] = []

    async def pay() -> None:
        seen.append(await _here().step("typed", lambda: CHARGE, returns=Charge))
        seen.append(await _here().step("plain", lambda: CHARGE))

    await _run(connect, InMemoryBackend(), pay)
    assert seen == [CHARGE, {"id": "c_1", "at": seen[1]["at"], "amount": "1.10"}]


async def test_a_plain_functions_step_is_typed_too(connect: Any) -> None:
    seen: list[Any] = []

    @protected(path="/pay")
    def app() -> None:
        seen.append(_here().blocking_step("charge", charge))
        seen.append(_here().blocking_step("point", lambda: POINT, returns=Point))

    async with connect(app) as client:
        assert (await client.post("/pay", headers=KEY)).status_code == 200
    assert seen == [CHARGE, POINT]


async def test_a_type_that_cannot_be_kept_is_found_before_anything_has_run(connect: Any) -> None:
    class Connection:
        pass

    calls: list[int] = []

    def opened() -> Connection:
        calls.append(1)
        return Connection()

    async def pay() -> None:
        for call, returns in ((opened, None), (lambda: calls.append(1), Connection)):
            with pytest.raises(TypeError, match="what JSON has"):
                await _here().step("open", call, returns=returns)

    # A class of this function has a name that only a hint by object can show.
    opened.__annotations__["return"] = Connection
    await _run(connect, InMemoryBackend(), pay)
    assert calls == []


async def test_a_result_that_is_not_what_was_hinted_is_kept_and_never_runs_again(
    connect: Any,
) -> None:
    calls: list[int] = []

    def misnamed() -> int:
        calls.append(1)
        return "many"  # type: ignore[return-value]

    async def pay() -> None:
        for _ in range(2):
            with pytest.raises(TypeError, match=r"is kept.*valid integer") as raised:
                await _here().step("count", misnamed)
            assert "many" not in str(raised.value), "it may be a secret"

    await _run(connect, InMemoryBackend(), pay)
    assert calls == [1]


async def test_an_execution_has_a_hundred_steps_at_most(connect: Any) -> None:
    raised: list[str] = []

    async def pay() -> None:
        for number in range(100):
            assert await _here().step(f"{number}", lambda: 1) == 1
        with pytest.raises(ValueError, match="100") as refused:
            await _here().step("one more", lambda: 1)
        raised.append(str(refused.value))

    await _run(connect, InMemoryBackend(), pay)
    assert len(raised) == 1


async def test_without_an_answer_of_the_store_nothing_runs(connect: Any, own_postgres: Any) -> None:
    server = own_postgres()
    calls: list[int] = []
    raised: list[Exception] = []

    async def pay() -> None:
        server.stop()
        try:
            await _here().step("charge", lambda: calls.append(1))
        except RecoveryException as error:
            raised.append(error)

    backend = from_url(server.url)
    policy = {"store_timeout_ms": {"claim": 1000, "settle": 500}}
    await _run(connect, backend, pay, policy=policy)
    assert calls == []
    assert len(raised) == 1
    server.start()
    await backend.aclose()


async def _run(connect: Any, backend: Any, work: Callable[[], Any], **options: Any) -> None:
    @protected(backend, path="/pay", **options)
    async def app() -> str:
        await work()
        return "done"

    async with connect(app) as client:
        answer = await client.post("/pay", headers=KEY)
    assert answer.status_code == 200, answer.text


async def _close(backend: Any) -> None:
    await backend.aclose()
    if getattr(backend, "redis", None) is not None:
        backend.redis.close()
