"""Stores that are away, silent, full of foreign things or evicting."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from typing import Any

import fakeredis
import pytest
import redis
import redis.asyncio
import redis.asyncio.retry
import redis.backoff
import redis.retry
from fastapi.responses import JSONResponse
from idemptx._engine import Engine
from idemptx._engines import engines_of
from idemptx.backend import AsyncRedisBackend, RedisBackend
from own_backends import (
    OwnAsyncBackend,
    OwnBackend,
    SpecialAsyncRedis,
    SpecialRedis,
    close,
    one_route,
    post,
    two_tries,
)
from protected import protected
from protocol import KEY
from servers import eventually


@pytest.mark.parametrize("kind", ["in-loop", "client", "sync client"])
def test_a_backend_reconnects_to_a_restarted_server(
    connect: Any, own_redis: Any, kind: str
) -> None:
    server = own_redis("--appendonly", "yes", "--appendfsync", "always")
    backend: Any = {
        "in-loop": lambda: RedisBackend(server.url),
        "client": lambda: AsyncRedisBackend(SpecialAsyncRedis(port=server.port)),
        "sync client": lambda: RedisBackend(SpecialRedis(port=server.port)),
    }[kind]()
    assert backend.transport == kind.removeprefix("sync ")

    async def play() -> None:
        app = one_route(backend, iter(range(9)))
        async with connect(app) as client:
            assert (await client.post("/orders", headers=KEY)).json() == {"n": 0}
            server.kill()
            down = await client.post("/orders", headers=KEY)
            assert (down.status_code, down.json()["code"]) == (503, "store-unavailable")
            assert int(down.headers["retry-after"]) >= 1
            server.start()
            for _ in range(100):
                answer = await client.post("/orders", headers=KEY)
                if answer.status_code != 503:
                    break
                await asyncio.sleep(0.05)
            assert (answer.json(), answer.headers["x-idempotency-status"]) == ({"n": 0}, "hit")
        await close(backend)

    asyncio.run(play())


@pytest.mark.parametrize("kind", ["in-loop", "client", "sync client", "own"])
@pytest.mark.parametrize("open_", [False, True], ids=["closed", "open"])
def test_a_silent_store_times_out_and_the_policy_says_what_then(
    connect: Any, own_redis: Any, kind: str, open_: bool
) -> None:
    server = own_redis()

    class Slow(OwnAsyncBackend):
        async def get(self, key: str) -> dict[str, Any] | None:
            await asyncio.sleep(3600)
            return None

    backend: Any = {
        "in-loop": lambda: RedisBackend(server.url),
        "client": lambda: AsyncRedisBackend(SpecialAsyncRedis(port=server.port)),
        "sync client": lambda: RedisBackend(SpecialRedis(port=server.port)),
        "own": Slow,
    }[kind]()
    policy = {
        "store_timeout_ms": {"claim": 200, "settle": 200},
        "on_store_error": "fail_open" if open_ else "fail_closed",
    }

    async def play() -> Any:
        app = one_route(backend, iter(range(9)), policy=policy)
        async with connect(app) as client:
            server.stall()
            try:
                return await asyncio.wait_for(client.post("/orders", headers=KEY), 20)
            finally:
                server.resume()
                await close(backend)

    answer = asyncio.run(play())
    if open_:
        assert (answer.status_code, answer.json()) == (200, {"n": 0})
        assert answer.headers["idempotency-stored"] == "false"
    else:
        assert (answer.status_code, answer.json()["code"]) == (503, "store-unavailable")


@pytest.mark.parametrize("kind", ["in-loop", "async client", "sync client"])
def test_a_primary_that_was_demoted_is_left_and_found_again(
    connect: Any, own_redis: Any, kind: str
) -> None:
    """Its connections stay up, and lead to a replica that refuses every write."""
    server, other = own_redis(), own_redis()
    retries = {"retry": redis.retry.Retry(redis.backoff.NoBackoff(), 0)}
    async_retries = {
        "retry": redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 0),  # type: ignore[abstract]
    }
    backend: Any = {
        "in-loop": lambda: RedisBackend(server.url),
        "async client": lambda: AsyncRedisBackend(
            SpecialAsyncRedis(port=server.port, **async_retries)
        ),
        "sync client": lambda: RedisBackend(SpecialRedis(port=server.port, **retries)),
    }[kind]()

    async def play() -> None:
        app = one_route(backend, iter(range(9)))
        async with connect(app) as client:
            assert (await client.post("/orders", headers={"Idempotency-Key": "a"})).is_success
            with server.connect() as admin:
                connections = _connections(admin)
                admin.replicaof("127.0.0.1", other.port)
                refused = await client.post("/orders", headers=KEY)
                assert (refused.status_code, refused.json()["code"]) == (503, "store-unavailable")
                # Certain refusals leave nothing to be done: no release is sent again and again.
                assert engines_of(backend).here().coordinator.unconfirmed == 0
                if kind == "in-loop":
                    await asyncio.to_thread(
                        eventually,
                        lambda: connections.isdisjoint(_connections(admin)),
                        "the connection to a replica is kept",
                    )
                admin.replicaof("NO", "ONE")
            answer = await _until_not_503(client)
            assert answer.status_code == 200
        await close(backend)

    asyncio.run(play())


def _connections(admin: Any) -> set[str]:
    mine = admin.client_id()
    return {it["id"] for it in admin.client_list(_type="normal") if int(it["id"]) != mine}


async def _until_not_503(client: Any) -> Any:
    for _ in range(200):
        answer = await client.post("/orders", headers=KEY)
        if answer.status_code != 503:
            break
        await asyncio.sleep(0.05)
    return answer


@pytest.mark.parametrize(
    ("error", "is_certain"),
    [
        (redis.exceptions.ReadOnlyError("You can't write against a read only replica."), True),
        (redis.exceptions.OutOfMemoryError("command not allowed"), True),
        (redis.exceptions.BusyLoadingError("Redis is loading the dataset in memory"), True),
        (redis.exceptions.ResponseError("MISCONF Redis is configured to save"), True),
        (redis.exceptions.ConnectionError("Connection reset by peer"), False),
        (redis.exceptions.TimeoutError("Timeout reading from socket"), False),
    ],
)
@pytest.mark.parametrize("resends", [False, True])
def test_a_refusal_through_a_client_that_sends_once_is_certain(
    connect: Any, error: Exception, is_certain: bool, resends: bool
) -> None:
    class Refusing(fakeredis.FakeRedis):
        def execute_command(self, *arguments: Any, **options: Any) -> Any:
            if arguments[0] in ("SET", "EVALSHA"):
                raise error
            return super().execute_command(*arguments, **options)

        def get_connection_kwargs(self) -> dict[str, Any]:
            retries = redis.retry.Retry(redis.backoff.NoBackoff(), 3 if resends else 0)
            return {**super().get_connection_kwargs(), "retry": retries}

    backend = RedisBackend(Refusing())

    async def play() -> int:
        answer = await post(connect, one_route(backend, iter(range(9))))
        assert answer.status_code == 503
        return engines_of(backend).here().coordinator.unconfirmed

    assert (asyncio.run(play()) == 0) == (is_certain and not resends)


def test_nothing_is_left_in_redis_by_a_claim_that_nobody_heard_of(
    connect: Any, own_redis: Any
) -> None:
    """A claim that is executed late must not block the key for a whole lease."""
    server = own_redis()
    policy = {"store_timeout_ms": {"claim": 1000}}

    async def play() -> Any:
        app = one_route(RedisBackend(server.url), iter(range(9)), policy=policy)
        async with connect(app) as client:
            assert (await client.post("/orders", headers={"Idempotency-Key": "a"})).json() == {
                "n": 0
            }
            server.stall()
            refused = await client.post("/orders", headers=KEY)
            server.resume()
            assert refused.status_code == 503
            for _ in range(100):
                answer = await client.post("/orders", headers=KEY)
                if answer.status_code == 200:
                    break
                await asyncio.sleep(0.05)
            return answer.json()

    assert asyncio.run(play()) == {"n": 1}


@pytest.mark.anyio
async def test_a_settlement_whose_first_try_took_its_time_is_not_repeated_before_the_answer(
    connect: Any, own_redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = own_redis()
    backend = RedisBackend(server.url)
    repeated: list[Any] = []
    given_up: list[bool] = []
    perform, confirm_later = Engine.perform, Engine.confirm_later

    async def counted(engine: Engine, step: Any) -> None:
        if not given_up:
            repeated.append(step)
        await perform(engine, step)

    def noted(engine: Engine, *rest: Any) -> None:
        given_up.append(True)
        confirm_later(engine, *rest)

    monkeypatch.setattr(Engine, "perform", counted)
    monkeypatch.setattr(Engine, "confirm_later", noted)

    @protected(backend, policy={"store_timeout_ms": {"claim": 2000, "settle": 500}})
    async def app() -> dict[str, bool]:
        server.stall()
        return {"ok": True}

    async with connect(app) as client:
        answer = await client.post("/orders", headers=KEY)
    server.resume()
    assert (answer.status_code, answer.headers["idempotency-stored"]) == (200, "false")
    assert (repeated, given_up) == ([], [True])
    await close(backend)


def test_a_store_that_may_lose_records_is_complained_about(
    connect: Any, own_redis: Any, caplog: Any
) -> None:
    server = own_redis("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    assert asyncio.run(two_tries(connect, RedisBackend(server.url))) == [200, 200]
    assert any("maxmemory" in message or "evict" in message for message in caplog.messages)


def test_a_restart_that_forgets_is_noticed_where_the_url_says_so(
    connect: Any, own_redis: Any
) -> None:
    """The compiled store puts the result back before anything new begins."""
    server = own_redis("--appendonly", "no", "--save", "")
    backend = RedisBackend(f"{server.url}?failover_grace_ms=3000")
    assert backend.transport == "compiled"

    async def answers(client: Any, key: str, *, until: int) -> Any:
        for _ in range(200):
            answer = await client.post("/orders", headers={"Idempotency-Key": key})
            if answer.status_code == until:
                return answer
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.05)
        raise AssertionError(answer.text)

    async def play() -> None:
        async with connect(one_route(backend, itertools.count())) as client:
            # Used for the first time with this setting, it begins with a grace period.
            assert (await answers(client, "first", until=200)).json() == {"n": 0}
            server.kill()
            server.start()
            again = await answers(client, "first", until=200)
            assert (again.json(), again.headers["x-idempotency-status"]) == ({"n": 0}, "hit")
            assert (await answers(client, "second", until=200)).json() == {"n": 1}
        await close(backend)

    asyncio.run(play())


def test_a_claim_waits_for_replicas_where_the_url_says_so(connect: Any, own_redis: Any) -> None:
    server = own_redis()
    backend = AsyncRedisBackend(f"{server.url}?wait_replicas=all")

    async def play() -> None:
        async with connect(one_route(backend, itertools.count())) as client:
            refused = await client.post("/orders", headers=KEY)
            assert (refused.status_code, refused.json()["code"]) == (503, "store-unavailable")
        await close(backend)

    asyncio.run(play())
    with pytest.raises(ValueError, match="number or `all`"):
        RedisBackend(f"{server.url}?wait_replicas=some")
    with pytest.raises(TypeError, match="wait_replicas"):
        RedisBackend(redis.Redis(port=server.port), wait_replicas="all")  # type: ignore[call-arg]


def test_a_store_that_promises_less_is_refused_until_it_promises_enough_again(
    connect: Any, own_redis: Any, caplog: Any
) -> None:
    """The engine asks by itself, from time to time."""
    server = own_redis("--appendonly", "yes", "--appendfsync", "always")
    caplog.set_level("INFO", logger="idemptx")
    policy = {"store_check_ms": 100, "on_unsafe_store": "refuse"}
    keys = (f"key-{number}" for number in itertools.count())

    async def play() -> None:
        app = one_route(RedisBackend(server.url), itertools.count(), policy=policy)
        async with connect(app) as client:

            async def comes_to(status: int) -> None:
                for _ in range(200):
                    answer = await client.post("/orders", headers={"Idempotency-Key": next(keys)})
                    if answer.status_code == status:
                        return
                    await asyncio.sleep(0.05)
                raise AssertionError(answer.text)

            await comes_to(200)
            for _ in range(2):
                with server.connect() as admin:
                    admin.config_set("maxmemory-policy", "allkeys-lru")
                await comes_to(503)
                with server.connect() as admin:
                    admin.config_set("maxmemory-policy", "noeviction")
                await comes_to(200)

    asyncio.run(play())
    # Refused requests have lines of their own, as many as the rate of such lines allows.
    findings = [it for it in caplog.messages if not it.startswith("store unavailable")]
    told = [finding for finding in findings if "allkeys-lru" in finding]
    assert [finding.startswith("not any more: ") for finding in told] == [False, True] * 2


def test_a_record_that_cannot_be_read_is_never_executed_over(
    connect: Any, redis_server: Any
) -> None:
    async def play() -> Any:
        calls = iter(range(9))
        async with connect(one_route(RedisBackend(redis_server.url), calls)) as client:
            await client.post("/orders", headers=KEY)
            with redis_server.connect() as admin:
                (name,) = admin.keys("*")
                admin.set(name, b"\xffnonsense", ex=60)
            return await client.post("/orders", headers=KEY), next(calls)

    answer, calls = asyncio.run(play())
    assert (answer.status_code, answer.json()["code"], calls) == (409, "outcome-unknown", 1)


@pytest.mark.anyio
async def test_an_own_backend_that_raises_is_an_unavailable_store(connect: Any) -> None:
    class Broken(OwnBackend):
        def get(self, key: str) -> dict[str, Any] | None:
            raise OSError("disk on fire")

    answer = await post(connect, one_route(Broken(), iter(range(9))))
    assert (answer.status_code, answer.json()["code"]) == (503, "store-unavailable")
    assert "fire" not in answer.text


@pytest.mark.anyio
async def test_an_own_backend_with_the_originals_values_is_never_executed_over(
    connect: Any,
) -> None:
    """The original's records lack what a byte for byte replay needs."""

    class Migrated(OwnBackend):
        def get(self, key: str) -> dict[str, Any] | None:
            return {"data": {}, "status_code": 200, "headers": {}, "request_signature": "s"}

    calls = iter(range(9))
    answer = await post(connect, one_route(Migrated(), calls))
    assert (answer.status_code, answer.json()["code"]) == (409, "outcome-unknown")
    assert next(calls) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("make", [OwnBackend, OwnAsyncBackend])
async def test_a_corrected_request_executes_over_an_own_backend(connect: Any, make: Any) -> None:
    calls = itertools.count(1)

    @protected(make())
    async def app(order: dict[str, int]) -> Any:
        return JSONResponse({"call": next(calls)}, 201 if order["amount"] else 422)

    async with connect(app) as client:
        answers = [
            await client.post("/orders", json={"amount": amount}, headers=KEY)
            for amount in (0, 0, 5, 5)
        ]
    told = [(answer.status_code, answer.json()["call"]) for answer in answers]
    assert told == [(422, 1), (422, 1), (201, 2), (201, 2)]


# Connections


@pytest.mark.parametrize("kind", [redis.Redis, redis.asyncio.Redis])
def test_an_empty_password_is_none(connect: Any, redis_server: Any, kind: Any) -> None:
    """Settings often have one where there is none; redis-py takes it so, too."""
    backend = RedisBackend(kind(port=redis_server.port, password=""))
    assert backend.transport == "in-loop"
    assert asyncio.run(two_tries(connect, backend)) == [200, 200]


@pytest.mark.parametrize("form", ["client", "url", "bytes"])
def test_the_user_that_is_named_is_logged_in(connect: Any, own_redis: Any, form: str) -> None:
    server = own_redis()
    with server.connect() as admin:
        admin.acl_setuser("guest", enabled=True, nopass=True, keys="*", commands=["+@all"])
        admin.acl_setuser("other", enabled=True, passwords=["+s"], keys="*", commands=["+@all"])
    backend = {
        "client": lambda: RedisBackend(redis.Redis(port=server.port, username="guest")),
        "url": lambda: RedisBackend(f"redis://guest@127.0.0.1:{server.port}"),
        "bytes": lambda: RedisBackend(
            redis.Redis(port=server.port, username="other", password=b"s")
        ),
    }[form]()

    async def play() -> tuple[int, set[str]]:
        answer = await post(connect, one_route(backend, itertools.count()))
        with server.connect() as admin:
            users = {client["user"] for client in admin.client_list()}
        await close(backend)
        return answer.status_code, users

    status, users = asyncio.run(play())
    assert status == 200
    assert ("other" if form == "bytes" else "guest") in users


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_an_idle_connection_is_kept_alive(connect: Any, redis_server: Any, loop: str) -> None:
    """Routers forget connections without traffic, and a request would wait for its time limit."""

    async def play() -> int:
        backend = RedisBackend(redis_server.url)
        await post(connect, one_route(backend, itertools.count()))
        shown = engines_of(backend).here().store._connection._transport.get_extra_info("socket")
        with socket.fromfd(shown.fileno(), socket.AF_INET, socket.SOCK_STREAM) as duplicate:
            kept = duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        await close(backend)
        return kept

    make = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None
    with contextlib.closing((make or asyncio.new_event_loop)()) as running:
        kept = running.run_until_complete(play())
        running.run_until_complete(running.shutdown_asyncgens())
    assert kept


@pytest.mark.parametrize("kind", ["in-loop", "client"])
def test_a_user_who_could_not_end_its_claims_executes_nothing(
    connect: Any, own_redis: Any, kind: str
) -> None:
    server = own_redis("--appendonly", "yes")
    with server.connect() as admin:
        commands = ["+@all", "-eval", "-evalsha"]
        admin.acl_setuser("poor", enabled=True, passwords=["+s"], keys="*", commands=commands)
    settings = {"port": server.port, "username": "poor", "password": "s"}
    make = redis.Redis if kind == "in-loop" else SpecialRedis
    backend, calls = RedisBackend(make(**settings)), itertools.count()

    async def play() -> tuple[Any, Any]:
        report = await backend.check()
        app = one_route(backend, calls, policy={"on_unsafe_store": "refuse"})
        answer = await post(connect, app)
        await close(backend)
        return report, answer

    report, answer = asyncio.run(play())
    assert report.is_fatal
    assert "no result is kept" in report.findings[0].text
    assert (answer.status_code, answer.json()["code"]) == (503, "store-unavailable")
    assert next(calls) == 0
