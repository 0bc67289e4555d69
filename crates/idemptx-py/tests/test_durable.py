"""The backends that keep records on disk: SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from idemptx import Severity
from idemptx.backend import PostgresBackend, SqliteBackend, from_url
from load import send_duplicates
from protected import protected
from protocol import KEY, PATIENT, executes_once_replays_and_refuses, serves_loops_at_once

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi import FastAPI

LEASE_MS = 2000
KEYS = 60
DUPLICATES = 6


LOOPS = [("asyncio", {"use_uvloop": use_uvloop}) for use_uvloop in (False, True)]


@pytest.mark.parametrize("anyio_backend", LOOPS, ids=["asyncio", "uvloop"])
@pytest.mark.anyio
async def test_a_durable_backend_executes_once_replays_and_refuses(
    connect: Any, durable_url: str
) -> None:
    backend = from_url(durable_url)
    await executes_once_replays_and_refuses(connect, backend)
    await backend.aclose()


@pytest.mark.anyio
async def test_a_plain_function_is_protected_too(connect: Any, durable_url: str) -> None:
    backend = from_url(durable_url)
    threads = []

    @protected(backend, wait_timeout=20)
    def app() -> dict[str, int]:
        threads.append(threading.get_ident())
        return {"n": len(threads)}

    async with connect(app) as client:
        sent = [client.post("/orders", headers=KEY) for _ in range(6)]
        answers = await asyncio.gather(*sent)
    assert [answer.json() for answer in answers] == [{"n": 1}] * 6
    assert threads != [threading.get_ident()]
    await backend.aclose()


def test_one_loop_after_the_other_finds_the_records(connect: Any, durable_url: str) -> None:
    backend = from_url(durable_url)
    app = _app(backend, [])
    seen = [asyncio.run(_post(connect, app)) for _ in range(3)]
    assert [answer.json() for answer in seen] == [{"n": 1}] * 3


def test_two_backends_at_one_place_share_everything(connect: Any, durable_url: str) -> None:
    executions: list[int] = []

    async def play() -> list[httpx.Response]:
        apps = [_app(from_url(durable_url), executions) for _ in range(2)]
        return [await _post(connect, app) for app in apps]

    answers = asyncio.run(play())
    assert answers[0].content == answers[1].content
    assert executions == [1]


def test_three_loops_at_once_share_a_backend(connect: Any, durable_url: str) -> None:
    serves_loops_at_once(connect, from_url(durable_url), KEYS)


def test_duplicates_in_two_workers_are_one_execution(
    serve: Any, effects: Any, durable_url: str
) -> None:
    loop = "asyncio" if durable_url.startswith("sqlite") else "uvloop"
    options = {"wait_timeout": 20, "policy": PATIENT}
    server = serve(workers=2, loop=loop, backend=durable_url, options=options)
    keys = [f"key-{number}" for number in range(KEYS)]
    sending = send_duplicates(server.port, "/orders?ms=5", keys, duplicates=DUPLICATES, at_once=6)
    answers = asyncio.run(sending)
    assert Counter(effects.all()) == dict.fromkeys(keys, 1)
    for key, seen in answers.items():
        assert {answer.status for answer in seen} == {201}, key
        assert len({answer.body for answer in seen}) == 1, key


def test_a_killed_server_leaves_its_answers_and_its_claims(
    serve: Any, effects: Any, durable_url: str
) -> None:
    options = {"policy": {**PATIENT, "lease_ms": LEASE_MS}}
    server = serve(backend=durable_url, options=options)
    with server.connect() as client:
        first = client.post("/orders", headers={"Idempotency-Key": "settled"})

    async def leave_a_claim() -> None:
        async with server.connect_async() as client:
            headers = {"Idempotency-Key": "claimed"}
            sending = asyncio.create_task(client.post("/orders?hold=true", headers=headers))
            await asyncio.to_thread(effects.await_begin, "claimed")
            server.kill()
            await asyncio.gather(sending, return_exceptions=True)

    asyncio.run(leave_a_claim())
    with serve(backend=durable_url, options=options).connect() as client:
        again = client.post("/orders", headers={"Idempotency-Key": "settled"})
        assert again.content == first.content
        assert again.headers["x-idempotency-status"] == "hit"
        # The orphan blocks its key for what is left of its lease, and is then executed again.
        effects.finish("claimed")
        statuses = []
        while 201 not in statuses:
            headers = {"Idempotency-Key": "claimed"}
            statuses.append(client.post("/orders?hold=true", headers=headers).status_code)
            assert statuses[-1] in {201, 409}
            time.sleep(0.05)
    assert effects.of("claimed") == 2


# What is said of them


@pytest.mark.parametrize(
    ("url", "transport"),
    [
        ("sqlite:records.db", "sqlite"),
        ("sqlite:///var/lib/records.db", "sqlite"),
        ("postgres://app:secret@db/shop", "postgres"),
        ("postgresql://db:5433/shop", "postgres"),
        ("postgres:///shop?host=/run/postgresql", "postgres"),
    ],
)
def test_urls_name_durable_backends(url: str, transport: str) -> None:
    assert from_url(url).transport == transport


@pytest.mark.parametrize(
    "url",
    ["sqlite:", "sqlite://host/records.db", "sqlite::memory:", "sqlite:records.db?mode=ro",
     "postgres:", "postgres://app:s3cr3t@", "postgres://app:s3cr3t@host:port/shop",
     "postgres://app:s3cr3t@host/shop?nonsense=1"],
)  # fmt: skip
def test_a_url_that_cannot_be_meant_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w{4}") as refused:
        from_url(url)
    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [{"schema": "x" * 40}, {"synchronous_commit": "off"}, {"timeout": 0}, {"timeout": float("nan")},
     {"ca_certificates": "no certificate"}],
)  # fmt: skip
def test_a_setting_that_cannot_be_meant_is_refused(settings: Any) -> None:
    with pytest.raises(ValueError, match=r"\w{4}"):
        PostgresBackend("postgres://db/shop", **settings)


def test_what_is_no_path_or_url_is_refused() -> None:
    for make in (SqliteBackend, PostgresBackend):
        with pytest.raises(TypeError):
            make(4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="InMemoryBackend"):
        SqliteBackend(":memory:")


def test_no_password_is_shown() -> None:
    backend = from_url("postgres://app:s3cr3t@db/shop")
    assert "s3cr3t" not in repr(backend)


@pytest.mark.anyio
async def test_a_durable_backend_says_what_it_promises(durable_url: str) -> None:
    backend = from_url(durable_url)
    report = await backend.check()
    promise = "one execution per key" if durable_url.startswith("sqlite") else "survive a crash"
    assert promise in report.guarantee
    assert not report.is_unsafe
    await backend.aclose()


@pytest.mark.anyio
async def test_a_server_that_may_forget_is_found_unsafe(own_postgres: Any) -> None:
    backend = from_url(own_postgres("fsync = off").url)
    report = await backend.check()
    assert report.is_unsafe
    assert report.findings[0].severity == Severity.UNSAFE
    await backend.aclose()


@pytest.mark.anyio
async def test_tables_may_be_made_by_somebody_else(connect: Any, postgres_server: Any) -> None:
    backend = PostgresBackend(postgres_server.url, schema="idemptx", migrate=False)
    assert (await _post(connect, _app(backend, []))).status_code == 503
    postgres_server.ask(backend.schema_sql())
    await backend.aclose()
    assert (await _post(connect, _app(backend, []))).status_code == 200
    await backend.aclose()


@pytest.mark.anyio
async def test_schemas_share_nothing(connect: Any, postgres_server: Any) -> None:
    executions: list[int] = []
    for name in ("idemptx_one", "idemptx_two", "idemptx_one"):
        backend = PostgresBackend(postgres_server.url, schema=name)
        assert (await _post(connect, _app(backend, executions))).status_code == 200
        await backend.aclose()
    assert executions == [1, 1]
    postgres_server.ask("DROP SCHEMA idemptx_one, idemptx_two CASCADE")


@pytest.mark.anyio
async def test_values_are_not_what_they_keep(durable_url: str) -> None:
    backend = from_url(durable_url)
    for call in (backend.get("k"), backend.set("k", {}, 1), backend.acquire_lock("k", 1)):
        with pytest.raises(TypeError, match="nothing else"):
            await call


# Faults


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda path: path.rmdir(), "its folder does not exist"),
        (lambda path: (path / "records.db").mkdir(), "it is a folder"),
        (lambda path: (path / "records.db").write_bytes(b"x" * 8192), "not an SQLite database"),
        (lambda path: _make_foreign(path / "records.db"), "a database of another application"),
    ],
)
@pytest.mark.anyio
async def test_a_file_that_cannot_be_the_store_is_refused_and_said_to_be(
    connect: Any, tmp_path: Path, caplog: Any, spoil: Any, complaint: str
) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    spoil(folder)
    executions: list[int] = []
    backend = SqliteBackend(folder / "records.db")
    answer = await _post(connect, _app(backend, executions))
    assert (answer.status_code, answer.json()["code"]) == (503, "store-unavailable")
    with pytest.raises(OSError, match=complaint):
        await backend.check()
    await _until(lambda: complaint in caplog.text, "nobody was told")
    assert executions == []
    await backend.aclose()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everything")
@pytest.mark.anyio
async def test_a_file_that_may_not_be_written_is_said_to_be(connect: Any, tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path / "records.db")
    assert (await _post(connect, _app(backend, []))).status_code == 200
    await backend.aclose()
    # SQLite would write by the handle that it still has; what it writes first goes with it.
    log = tmp_path / "records.db-wal"
    await _until(lambda: not log.exists(), "the file was never closed")
    (tmp_path / "records.db").chmod(0o400)
    other = SqliteBackend(tmp_path / "records.db")
    with pytest.raises(OSError, match="may not write"):
        await other.check()
    await other.aclose()


@pytest.mark.anyio
async def test_a_folder_that_is_made_later_is_found(connect: Any, tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path / "later" / "records.db")
    app = _app(backend, [])
    assert (await _post(connect, app)).status_code == 503
    (tmp_path / "later").mkdir()
    assert await _until_answered(connect, app) == 200
    await backend.aclose()


@pytest.mark.anyio
async def test_a_server_that_comes_later_is_found(connect: Any, own_postgres: Any) -> None:
    server = own_postgres(starts=False)
    executions: list[int] = []
    backend = from_url(server.url)
    app = _app(backend, executions)
    refused = await _post(connect, app)
    assert (refused.status_code, refused.json()["code"]) == (503, "store-unavailable")
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        await backend.check()
    assert executions == []
    server.start()
    assert await _until_answered(connect, app) == 200
    await backend.aclose()


@pytest.mark.anyio
async def test_a_server_that_crashed_has_kept_everything(connect: Any, own_postgres: Any) -> None:
    server = own_postgres()
    executions: list[int] = []
    backend = from_url(server.url)
    app = _app(backend, executions)
    first = await _post(connect, app)
    server.stop()
    assert (await _post(connect, app)).status_code == 503
    server.start()
    assert await _until_answered(connect, app) == 200
    assert (await _post(connect, app)).content == first.content
    assert executions == [1]
    await backend.aclose()


@pytest.mark.anyio
async def test_an_answer_that_found_no_server_is_stored_behind(
    connect: Any, own_postgres: Any
) -> None:
    server = own_postgres()
    backend = from_url(server.url)
    executions: list[int] = []

    @protected(backend, policy={"store_timeout_ms": {"settle": 500}})
    async def app() -> dict[str, int]:
        executions.append(1)
        if len(executions) == 1:
            server.stop()
        return {"n": len(executions)}

    first = await _post(connect, app)
    assert (first.status_code, first.headers["idempotency-stored"]) == (200, "false")
    server.start()
    again = await _post(connect, app)
    while again.status_code in {409, 503}:
        await asyncio.sleep(0.05)
        again = await _post(connect, app)
    assert again.content == first.content
    assert executions == [1]
    await backend.aclose()


@pytest.mark.anyio
async def test_a_silent_server_is_waited_for_as_long_as_the_policy_says(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgres://app@127.0.0.1:{silent.getsockname()[1]}/shop"
        backend = PostgresBackend(url, timeout=60)
        app = _app(
            backend,
            [],
            policy={"store_timeout_ms": {"claim": 100}, "lease_ms": 500, "drain_ms": 100},
        )
        began = time.monotonic()
        assert (await _post(connect, app)).status_code == 503
        assert time.monotonic() - began < 30
        await backend.aclose()


@pytest.mark.anyio
async def test_what_waits_is_refused_when_the_backend_is_closed(
    connect: Any, postgres_server: Any
) -> None:
    backend = from_url(postgres_server.url)
    app = _app(backend, [])
    assert (await _post(connect, app)).status_code == 200
    with postgres_server.connect() as admin, admin.transaction():
        admin.execute("LOCK TABLE idemptx.records IN ACCESS EXCLUSIVE MODE")
        waiting = asyncio.create_task(_post(connect, app))
        await asyncio.sleep(0.1)
        await backend.aclose()
        assert (await waiting).status_code == 503
    assert (await _post(connect, app)).status_code == 200
    await backend.aclose()


def test_to_import_the_package_starts_no_thread() -> None:
    code = "import idemptx, idemptx.backend, os; print(len(os.listdir('/proc/self/task')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no such signal")
def test_keys_are_executed_once_whatever_is_killed(
    serve: Any, effects: Any, durable_url: str
) -> None:
    """Every acknowledged answer is replayed by the next server, however often one is killed."""
    answered: dict[str, bytes] = {}
    for round_number in range(2):
        server = serve(backend=durable_url, options={"wait_timeout": 5})

        async def play(server: Any = server, number: int = round_number) -> None:
            async with server.connect_async() as client:

                async def send(key: str) -> None:
                    try:
                        answer = await client.post("/orders", headers={"Idempotency-Key": key})
                    except httpx.TransportError:
                        return
                    if answer.status_code == 201:
                        answered.setdefault(key, answer.content)
                        assert answered[key] == answer.content

                for key in list(answered):
                    await send(key)
                sending = [asyncio.create_task(send(f"{number}-{n}")) for n in range(40)]
                await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
                server.kill()
                await asyncio.gather(*sending)

        asyncio.run(play())
    assert answered
    assert max(Counter(effects.all()).values()) == 1
    assert all(json.loads(body)["n"] for body in answered.values())


def _app(backend: Any, executions: list[int], **options: Any) -> FastAPI:
    @protected(backend, **options)
    async def app() -> dict[str, int]:
        executions.append(1)
        return {"n": len(executions)}

    return app


async def _post(connect: Any, app: FastAPI) -> httpx.Response:
    async with connect(app) as client:
        answer: httpx.Response = await client.post("/orders", headers=KEY)
        return answer


async def _until_answered(connect: Any, app: FastAPI) -> int:
    """Sends until the store gives a verdict, which it does by itself and soon."""
    until = time.monotonic() + 60
    while (status := (await _post(connect, app)).status_code) == 503:
        assert time.monotonic() < until, "the store was never found"
        await asyncio.sleep(0.05)
    return status


async def _until(condition: Any, complaint: str) -> None:
    """Waits for a condition that another task brings to hold without announcing it."""
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, complaint
        await asyncio.sleep(0.01)


def _make_foreign(path: Path) -> None:
    """Uses another process, since none may have the file open with two copies of SQLite."""
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('CREATE TABLE a (b)')"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
