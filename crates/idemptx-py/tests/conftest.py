"""Shared fixtures: real servers, clients in this process, and the original package."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from original import ORIGINAL, Original
from postgres import PostgresServer, is_installed
from servers import AppServer, Effects, RedisServer, Servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INSTALL_SECONDS_MAX = 120


@pytest.fixture(scope="session")
def _redis_session() -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        _lacking("redis-server is not installed")
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def redis_server(_redis_session: RedisServer) -> RedisServer:
    """The session's Redis, empty and with its statistics at nought."""
    _redis_session.flush()
    _redis_session.reset_statistics()
    return _redis_session


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url


@pytest.fixture
def own_redis() -> Iterator[Servers]:
    """Starts servers that a test may stall, kill and configure."""
    if shutil.which("redis-server") is None:
        _lacking("redis-server is not installed")
    started = Servers()
    yield started
    started.close()


@pytest.fixture(scope="session")
def _postgres_session() -> Iterator[PostgresServer]:
    _need_postgres()
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def postgres_server(_postgres_session: PostgresServer) -> PostgresServer:
    """The session's PostgreSQL, without the store's tables."""
    _postgres_session.ask("DROP SCHEMA IF EXISTS idemptx CASCADE")
    return _postgres_session


@pytest.fixture
def charged(postgres_server: PostgresServer) -> Callable[[], list[str]]:
    """The keys that were charged, in a table of the application's."""
    postgres_server.ask("DROP TABLE IF EXISTS charges")
    postgres_server.ask("CREATE TABLE charges (id bigserial PRIMARY KEY, key text NOT NULL)")
    return lambda: [key for (key,) in postgres_server.ask("SELECT key FROM charges ORDER BY id")]


@pytest.fixture
def own_postgres() -> Iterator[Callable[..., PostgresServer]]:
    """Starts servers that a test may kill and configure."""
    _need_postgres()
    started: list[PostgresServer] = []

    def start(*configuration: str, **options: Any) -> PostgresServer:
        started.append(PostgresServer(*configuration, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(params=["sqlite", "postgres"])
def durable_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a durable store without records."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/records.db"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.url


@pytest.fixture
def effects(redis_server: RedisServer) -> Iterator[Effects]:
    counter = Effects(redis_server)
    yield counter
    counter.close()


@pytest.fixture
def serve(redis_server: RedisServer) -> Iterator[Callable[..., AppServer]]:
    """Starts applications under uvicorn, with the session's Redis unless another is given."""
    servers: list[AppServer] = []

    def start(app: str = "orders:app", *, on: RedisServer | None = None, **rest: Any) -> AppServer:
        servers.append(AppServer(app, on or redis_server, **rest))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def original_path(request: pytest.FixtureRequest) -> Path:
    """The original package, where it cannot be mixed up with ours."""
    target = Path(request.config.cache.mkdir("original")) / ORIGINAL  # type: ignore[union-attr]
    if not target.exists():
        # Whole or not there: others may install it at the same time.
        begun = Path(tempfile.mkdtemp(dir=target.parent))
        command = [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-input"),
            *("--disable-pip-version-check", "--target", str(begun), f"idemptx=={ORIGINAL}"),
        ]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX
        )
        if done.returncode != 0:
            _lacking(f"the original package cannot be installed: {done.stderr.strip()}")
        with contextlib.suppress(OSError):  # somebody else was faster
            begun.rename(target)
    return target


@pytest.fixture(scope="session")
def _original_session(original_path: Path) -> Iterator[Original]:
    original = Original(original_path)
    yield original
    original.close()


@pytest.fixture
def both(redis_server: RedisServer, _original_session: Original) -> Callable[..., tuple[Any, Any]]:
    """Puts a scenario to our package and to the original: what each of them did."""
    from scenarios import observe  # noqa: PLC0415 - it imports the package under test

    def run(scenario: str) -> tuple[Any, Any]:
        ours = observe(scenario, redis_server.port)
        redis_server.flush()
        return ours, _original_session.observe(scenario, redis_server.port)

    return run


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def connect() -> Callable[..., httpx.AsyncClient]:
    """Clients of an application in this process; what it raises is a 500 to them."""

    def make(app: Any, **options: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(
            app, raise_app_exceptions=False, **options.pop("transport", {})
        )
        return httpx.AsyncClient(transport=transport, base_url="http://test", **options)

    return make


def _need_postgres() -> None:
    if not is_installed():
        _lacking("PostgreSQL is not installed")


def _lacking(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)
