"""The places where records are kept, and the ways to reach them."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import fakeredis
import pytest
import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel
from fastapi.responses import PlainTextResponse
from idemptx import IdempotencyMiddleware
from idemptx.backend import (
    AsyncRedisBackend,
    InMemoryBackend,
    RedisBackend,
    RedisClusterBackend,
    RedisSentinelBackend,
    from_url,
)
from protected import protected
from protocol import KEY, executes_once_replays_and_refuses, serves_loops_at_once
from servers import APPS, RedisServer, ReservedPort, eventually

if TYPE_CHECKING:
    from pathlib import Path
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


class CountingBackend(RedisBackend):
    """A subclass with its own way of keeping things."""

    sets = 0

    def set(self, key: str, value: dict[str, Any], ttl: int) -> None:
        self.sets += 1
        super().set(key, value, ttl)


Make = Callable[[RedisServer], Any]
TRANSPORTS: dict[str, tuple[Make, str]] = {
    "memory": (lambda _: InMemoryBackend(), "memory"),
    "sync client": (lambda it: RedisBackend(redis.Redis(port=it.port)), "in-loop"),
    "async client": (lambda it: AsyncRedisBackend(redis.asyncio.Redis(port=it.port)), "in-loop"),
    "async client in the sync backend": (
        lambda it: RedisBackend(redis.asyncio.Redis(port=it.port)),
        "in-loop",
    ),
    "another database": (lambda it: RedisBackend(redis.Redis(port=it.port, db=3)), "in-loop"),
    "unix socket": (
        lambda it: RedisBackend(redis.Redis(unix_socket_path=it.socket_path)),
        "in-loop",
    ),
    "from_url client": (lambda it: RedisBackend(redis.Redis.from_url(it.url)), "in-loop"),
    "blocking pool": (
        lambda it: RedisBackend(
            redis.Redis(connection_pool=redis.BlockingConnectionPool(port=it.port))
        ),
        "in-loop",
    ),
    "decoding sync client": (
        lambda it: RedisBackend(redis.Redis(port=it.port, decode_responses=True)),
        "in-loop",
    ),
    "decoding async client": (
        lambda it: AsyncRedisBackend(redis.asyncio.Redis(port=it.port, decode_responses=True)),
        "in-loop",
    ),
    "url": (lambda it: RedisBackend(it.url), "in-loop"),
    "from_url": (lambda it: from_url(it.url), "in-loop"),
    "from_url with a socket": (lambda it: from_url(f"unix://{it.socket_path}?db=2"), "in-loop"),
    "subclass": (lambda it: RedisBackend(SpecialRedis(port=it.port)), "client"),
    "decoding subclass": (
        lambda it: RedisBackend(SpecialRedis(port=it.port, decode_responses=True)),
        "client",
    ),
    "async subclass": (lambda it: AsyncRedisBackend(SpecialAsyncRedis(port=it.port)), "client"),
    "decoding async subclass": (
        lambda it: AsyncRedisBackend(SpecialAsyncRedis(port=it.port, decode_responses=True)),
        "client",
    ),
    "fakeredis": (lambda _: RedisBackend(fakeredis.FakeRedis()), "client"),
    "decoding fakeredis": (
        lambda _: RedisBackend(fakeredis.FakeRedis(decode_responses=True)),
        "client",
    ),
    "async fakeredis": (lambda _: AsyncRedisBackend(fakeredis.FakeAsyncRedis()), "client"),
    "own": (lambda _: OwnBackend(), "none"),
    "own async": (lambda _: OwnAsyncBackend(), "none"),
    "overriding subclass": (lambda it: CountingBackend(redis.Redis(port=it.port)), "adapter"),
}


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.mark.anyio
@pytest.mark.parametrize("name", TRANSPORTS)
async def test_every_backend_executes_once_replays_and_refuses(
    connect: Any, redis_server: Any, name: str
) -> None:
    make, transport = TRANSPORTS[name]
    backend = make(redis_server)
    if transport != "none":
        assert backend.transport == transport
    await executes_once_replays_and_refuses(connect, backend)
    await close(backend)


def test_clients_without_readable_settings_are_used_themselves() -> None:
    master = redis.sentinel.Sentinel([("127.0.0.1", 1)]).master_for("main")
    async_master = redis.asyncio.sentinel.Sentinel([("127.0.0.1", 1)]).master_for("main")
    provider = redis.UsernamePasswordCredentialProvider("a", "b")
    for client in (
        master,
        async_master,
        redis.asyncio.cluster.RedisCluster(host="127.0.0.1", port=1),
        redis.Redis(credential_provider=provider),
        redis.asyncio.Redis(credential_provider=provider),
    ):
        assert RedisBackend(client).transport == "client", client


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["cluster", "async cluster", "sentinel", "async sentinel"])
async def test_clusters_and_sentinels_are_served_through_their_clients(
    connect: Any, own_redis: Any, kind: str
) -> None:
    if kind.endswith("cluster"):
        server = own_redis(
            "--cluster-enabled", "yes", "--cluster-port", str(own_redis.reserve_port())
        )
        _found_cluster(server)
        node = {"host": "127.0.0.1", "port": server.port}
        client: Any = (
            redis.asyncio.cluster.RedisCluster(**node)
            if kind.startswith("async")
            else redis.cluster.RedisCluster(**node)
        )
        sentinels: list[Any] = []
    else:
        watcher = [("127.0.0.1", own_redis.sentinel_of(own_redis()).port)]
        manager: Any = (
            redis.asyncio.sentinel.Sentinel(watcher)
            if kind.startswith("async")
            else redis.sentinel.Sentinel(watcher)
        )
        client, sentinels = manager.master_for("main"), manager.sentinels
    backend = (AsyncRedisBackend if kind.startswith("async") else RedisBackend)(client)
    assert backend.transport == "client"
    numbers = iter(range(9))
    app = one_route(backend, numbers, wait_timeout=20)
    async with connect(app) as http:
        answers = await asyncio.gather(*(http.post("/orders", headers=KEY) for _ in range(5)))
        other = await http.post("/orders", headers=KEY, json=2)
    assert [answer.json() for answer in answers] == [{"n": 0}] * 5
    assert other.status_code == 422
    await close(backend)
    for sentinel in sentinels:
        closing = sentinel.aclose() if kind.startswith("async") else sentinel.close()
        if closing is not None:
            await closing


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["cluster", "sentinel"])
async def test_clusters_and_sentinels_are_reached_by_their_url(
    connect: Any, own_redis: Any, kind: str
) -> None:
    if kind == "cluster":
        server = own_redis(
            "--cluster-enabled", "yes", "--cluster-port", str(own_redis.reserve_port())
        )
        _found_cluster(server)
        url = f"redis+cluster://127.0.0.1:{server.port}"
    else:
        server = own_redis()
        url = f"redis+sentinel://127.0.0.1:{own_redis.sentinel_of(server).port}/main"
    backend = from_url(url)
    assert backend.transport == f"redis-{kind}"
    await executes_once_replays_and_refuses(connect, backend)
    with server.connect() as records:
        assert all(key.startswith(b"idempotency:{") for key in records.scan_iter())
        assert records.dbsize() > 0
    report = await backend.check()
    assert kind in report.guarantee
    await close(backend)


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("redis+cluster://", "host:port,host:port"),
        ("redis+cluster://node/1", "no database but 0"),
        ("redis+sentinel://guard", "no service"),
    ],
)
def test_a_url_of_servers_that_cannot_be_read_says_what_to_write(url: str, advice: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        from_url(url)
    assert advice in str(refused.value)
    with pytest.raises(ValueError, match=r"redis\+cluster://HOST"):
        RedisClusterBackend("redis://node")
    with pytest.raises(TypeError, match="takes a URL"):
        RedisSentinelBackend(1)  # type: ignore[arg-type]


def _found_cluster(server: RedisServer) -> None:
    """Makes the server a cluster of one node, which has all slots."""
    with server.connect() as admin:
        admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        eventually(
            lambda: admin.cluster("info")["cluster_state"] == "ok", "the cluster is not ready"
        )


def test_settings_of_tls_clients_are_read() -> None:
    plain = redis.Redis(ssl=True, ssl_cert_reqs="none", ssl_check_hostname=False)
    assert RedisBackend(plain).transport == "in-loop"
    assert AsyncRedisBackend(redis.asyncio.Redis(ssl=True)).transport == "in-loop"
    assert from_url("rediss://localhost").transport == "in-loop"


@pytest.mark.parametrize("name", ["url", "sync client", "async client", "no verification"])
def test_records_travel_over_tls(connect: Any, tls_redis: Any, name: str) -> None:
    server, port, authority = tls_redis
    server.flush()
    settings = {"port": port, "password": "sesame", "ssl": True, "host": "localhost"}
    backend = {
        "sync client": lambda: RedisBackend(redis.Redis(**settings, ssl_ca_certs=authority)),
        "async client": lambda: AsyncRedisBackend(
            redis.asyncio.Redis(**settings, ssl_ca_certs=authority)
        ),
        "no verification": lambda: RedisBackend(
            redis.Redis(**settings, ssl_cert_reqs="none", ssl_check_hostname=False)
        ),
        "url": lambda: from_url(f"rediss://:sesame@localhost:{port}"),
    }[name]()
    assert backend.transport == "in-loop"
    expected = [503, 503] if name == "url" else [200, 200]  # A URL trusts the system's authorities.
    assert asyncio.run(two_tries(connect, backend)) == expected


@pytest.fixture(scope="module")
def tls_redis(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with a certificate for localhost that its own authority signed."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", key),
            *("-addext", "subjectAltName=DNS:localhost", "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    with ReservedPort() as port:
        server = RedisServer(
            *("--tls-port", str(port), "--tls-cert-file", certificate, "--tls-key-file", key),
            *("--tls-ca-cert-file", certificate, "--tls-auth-clients", "no"),
            password="sesame",
        )
        yield server, port, certificate
        server.close()


@pytest.mark.parametrize("form", ["client", "url", "pool"])
def test_passwords_are_used(connect: Any, own_redis: Any, form: str) -> None:
    server = own_redis(password="p@ss/w:rd")
    backend = {
        "client": lambda: RedisBackend(redis.Redis(port=server.port, password="p@ss/w:rd")),
        "url": lambda: from_url(f"redis://:p%40ss%2Fw%3Ard@127.0.0.1:{server.port}/1"),
        "pool": lambda: AsyncRedisBackend(
            redis.asyncio.Redis(port=server.port, username="default", password="p@ss/w:rd")
        ),
    }[form]()
    assert backend.transport == "in-loop"
    assert asyncio.run(two_tries(connect, backend)) == [200, 200]


def test_a_wrong_password_is_an_unavailable_store_and_never_shown(
    connect: Any, own_redis: Any, caplog: Any
) -> None:
    server = own_redis(password="right")
    backend = from_url(f"redis://:wr0ng@127.0.0.1:{server.port}")
    assert asyncio.run(two_tries(connect, backend)) == [503, 503]
    assert "wr0ng" not in caplog.text
    assert "wr0ng" not in repr(backend) + str(vars(backend))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://127.0.0.1:{}/99", "ERR DB index is out of range"),
        ("rediss://127.0.0.1:{}", "if this port speaks no TLS, write redis:// instead"),
    ],
)
def test_a_wrong_url_is_told_by_what_is_wrong_with_it(
    own_redis: Any, url: str, reason: str
) -> None:
    backend = from_url(url.format(own_redis().port))
    with pytest.raises(ConnectionError, match=reason) as refused:
        asyncio.run(backend.check())
    assert "password" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["memory:", "redis://localhost", "redis://u:p@h:1/2", "rediss://h", "unix:///tmp/x?db=1"]
)
def test_urls_name_backends(url: str) -> None:
    expected = "memory" if url == "memory:" else "in-loop"
    assert from_url(url).transport == expected


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "http://localhost", "redis://h/x", "redis://h:port", "redis://h?nonsense=1",
     "unix://", "memory:x"],
)  # fmt: skip
def test_a_bad_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        from_url(url)
    with pytest.raises(ValueError, match=r"\w") as refused:
        from_url("ftp://user:s3cr3t@host")
    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize("client", [None, 1, object(), b"redis://localhost"])
def test_what_is_no_client_is_refused(client: Any) -> None:
    with pytest.raises(TypeError):
        RedisBackend(client)
    with pytest.raises(TypeError):
        AsyncRedisBackend(client)


def test_the_originals_methods_still_work(redis_server: Any) -> None:
    value = {"data": {"a": [1, None]}, "status_code": 200, "headers": {}, "request_signature": "s"}
    with redis.Redis(port=redis_server.port) as client:
        for backend in (RedisBackend(client), RedisBackend(client, "shop:"), InMemoryBackend()):
            assert backend.get("k") is None
            backend.set("k", value, ttl=60)
            assert backend.get("k") == value
            assert backend.acquire_lock("k", ttl=60)
            assert not backend.acquire_lock("k", ttl=60)
            backend.release_lock("k")
            assert backend.acquire_lock("k", ttl=60)
        assert client.ttl("shop:k") > 50


@pytest.mark.anyio
async def test_the_originals_asynchronous_methods_still_work(redis_server: Any) -> None:
    value = {"data": "\u00e4", "status_code": 200}
    async with redis.asyncio.Redis(port=redis_server.port) as client:
        backend = AsyncRedisBackend(client)
        assert await backend.get("k") is None
        await backend.set("k", value, ttl=60)
        assert await backend.get("k") == value
        assert await backend.acquire_lock("k", ttl=60)
        assert not await backend.acquire_lock("k", ttl=60)
        await backend.release_lock("k")
        assert await backend.acquire_lock("k", ttl=60)


def test_different_prefixes_share_nothing(connect: Any, redis_server: Any) -> None:
    async def numbers() -> list[int]:
        calls = iter(range(9))
        backends = [RedisBackend(redis_server.url, prefix) for prefix in ("a:", "b:", "a:")]
        return [(await post(connect, one_route(it, calls))).json()["n"] for it in backends]

    assert asyncio.run(numbers()) == [0, 1, 0]
    with redis_server.connect() as client:
        assert sorted(name[:2] for name in client.keys("*")) == [b"a:", b"b:"]


def test_a_backend_serves_one_loop_after_the_other(connect: Any, redis_server: Any) -> None:
    with redis.Redis(port=redis_server.port) as client:
        for backend in (RedisBackend(client), RedisBackend(SpecialRedis(port=redis_server.port))):
            redis_server.flush()
            app = one_route(backend, iter(range(9)))
            seen = [asyncio.run(post(connect, app)) for _ in range(4)]
            assert [answer.json() for answer in seen] == [{"n": 0}] * 4
            if backend.transport == "client":
                backend.redis.close()


@pytest.mark.parametrize("kind", ["redis", "memory"])
def test_a_backend_serves_two_loops_at_once(connect: Any, redis_server: Any, kind: str) -> None:
    backend: Any = InMemoryBackend() if kind == "memory" else RedisBackend(redis_server.url)
    serves_loops_at_once(connect, backend, 100)


@pytest.mark.parametrize(
    ("script", "store"),
    [
        ("fork_after_use", "redis"),
        ("fork_after_use", "postgres"),
        ("fork_from_sqlite", "sqlite"),
        ("leave_nothing_behind", "all"),
    ],
)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_process_of_its_own(
    redis_server: Any, postgres_server: Any, tmp_path: Path, *, script: str, store: str, loop: str
) -> None:
    """Forks after a backend was used; ends loops with requests, waiters and handlers running."""
    url = redis_server.url if store == "redis" else postgres_server.url
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(APPS / f"{script}.py")],
        env={
            **os.environ,
            "TEST_REDIS_PORT": str(redis_server.port),
            "TEST_POSTGRES": postgres_server.url,
            "TEST_FOLDER": str(tmp_path),
            "TEST_STORE": url,
            "TEST_LOOP": loop,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout == "fine\n"


def test_a_memory_backend_refuses_new_keys_beyond_its_limit(connect: Any) -> None:
    async def play() -> list[int]:
        @protected(InMemoryBackend(bytes_max=64 * 1024))
        async def app() -> Any:
            return {"text": "x" * 10_000}

        async with connect(app) as client:
            keys = [{"Idempotency-Key": f"k{number}"} for number in range(12)]
            first = [(await client.post("/orders", headers=key)).status_code for key in keys]
            kept = (await client.post("/orders", headers=keys[0])).headers["x-idempotency-status"]
            assert kept == "hit"
            return first

    statuses = asyncio.run(play())
    assert statuses[0] == 200
    assert set(statuses) == {200, 503}


def test_a_backend_that_nobody_uses_is_forgotten(connect: Any, redis_server: Any) -> None:
    """With a middleware: FastAPI itself never forgets an endpoint."""

    def use() -> Any:
        backend = RedisBackend(redis_server.url)
        app = IdempotencyMiddleware(PlainTextResponse("fine"), storage_backend=backend)
        assert asyncio.run(post(connect, app)).status_code == 200
        return weakref.ref(backend)

    forgotten = use()
    gc.collect()
    assert forgotten() is None


@pytest.mark.anyio
async def test_closing_gives_connections_back_and_a_later_request_opens_new_ones(
    connect: Any, redis_server: Any
) -> None:
    backend = RedisBackend(redis_server.url)
    app = one_route(backend, iter(range(9)))
    async with connect(app) as client:
        await client.post("/orders", headers=KEY)
        await backend.aclose()
        await backend.aclose()
        with redis_server.connect() as admin:
            await asyncio.to_thread(
                eventually, lambda: len(admin.client_list()) == 1, "a connection is left"
            )
        assert (await client.post("/orders", headers=KEY)).json() == {"n": 0}
        await backend.aclose()
