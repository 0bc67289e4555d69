"""Defects of the original package, as scenarios that either package is put through.

A scenario makes an application, sends requests and returns what it observed, as JSON has it.
Only what both packages offer is used, but for `Bench.policy`, which the original has nothing of.
Run as a program, it takes `[scenario, port]` per line and answers with one line each.
One file, because that program runs beside the original package, without the other tests.
"""

import asyncio
import contextlib
import importlib.util
import json
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import httpx
import redis
import redis.asyncio
from fastapi import FastAPI, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse
from idemptx import idempotent
from idemptx.backend import AsyncRedisBackend, InMemoryBackend, RedisBackend
from protected import protected
from pydantic import BaseModel
from servers import RedisServer

IS_OURS = importlib.util.find_spec("idemptx._idemptx") is not None
WAIT_SECONDS_MAX = 60
STALL_SECONDS = 2.5
TRIES_MAX = 25

KEY = {"Idempotency-Key": "1f0c-81"}


class Bench:
    """The environment that a scenario runs in."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.notes = redis.asyncio.Redis(port=port)
        self._clients = [self.notes]
        self._backends: list[Any] = []

    def async_backend(self, port: int | None = None) -> AsyncRedisBackend:
        self._clients.append(redis.asyncio.Redis(port=port or self.port))
        return self._kept(AsyncRedisBackend(self._clients[-1]))

    def sync_backend(self, port: int | None = None) -> RedisBackend:
        return self._kept(RedisBackend(redis.Redis(port=port or self.port)))

    def policy(self, **values: Any) -> dict[str, Any]:
        return {"policy": values} if IS_OURS else {}

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()
        for backend in self._backends:
            if IS_OURS:
                await backend.aclose()
            elif isinstance(backend, RedisBackend):
                backend.redis.close()

    def _kept(self, backend: Any) -> Any:
        self._backends.append(backend)
        return backend


Scenario = Callable[[Bench], Awaitable[Any]]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


class Receipt(BaseModel):
    total: int
    note: str = ""


@scenario
async def quick_start(bench: Bench) -> Any:
    effects = 0

    @protected(bench.sync_backend())
    async def app(request: Request):
        nonlocal effects
        effects += 1
        return {"status": "created"}

    async with _client(app) as client:
        tries = [await client.post("/orders", headers=KEY) for _ in range(3)]
    return {"statuses": [answer.status_code for answer in tries], "effects": effects}


@scenario
async def response_model(bench: Bench) -> Any:
    effects = 0
    app = FastAPI()

    @app.post("/orders", response_model=Receipt, response_model_exclude_defaults=True)
    @idempotent(InMemoryBackend())
    async def create_order(request: Request):
        nonlocal effects
        effects += 1
        return Receipt(total=5)

    async with _client(app) as client:
        tries = [await client.post("/orders", headers=KEY) for _ in range(3)]
    return {
        "statuses": [answer.status_code for answer in tries],
        "bodies": sorted({answer.text for answer in tries}),
        "effects": effects,
    }


@scenario
async def plain_function(bench: Bench) -> Any:
    threads: list[str] = []

    @protected()
    def app(request: Request):
        threads.append(threading.current_thread().name)
        return JSONResponse({"status": "created"}, 201)

    async with _client(app) as client:
        tries = [await client.post("/orders", headers=KEY) for _ in range(3)]
    return {
        "statuses": [answer.status_code for answer in tries],
        "effects": len(threads),
        "on_the_loops_thread": threading.current_thread().name in threads,
    }


@scenario
async def plain_text_and_no_content(bench: Bench) -> Any:
    effects: list[str] = []
    app = FastAPI()
    backend = InMemoryBackend()

    @app.post("/text")
    @idempotent(backend)
    async def text(request: Request):
        effects.append("text")
        return PlainTextResponse("thank you")

    @app.post("/nothing")
    @idempotent(backend)
    async def nothing(request: Request):
        effects.append("nothing")
        return Response(status_code=204)

    async with _client(app) as client:
        answers = [
            await client.post(path, headers=KEY) for path in ("/text", "/nothing") for _ in range(3)
        ]
    return {
        "statuses": [answer.status_code for answer in answers],
        "marks": [answer.headers["x-idempotency-status"] for answer in answers],
        "effects": len(effects),
    }


@scenario
async def retry_with_other_headers(bench: Bench) -> Any:
    """Changes the headers that proxies, browsers, tracers or SDK releases change on a retry."""

    @protected()
    async def app(request: Request):
        return JSONResponse({"status": "created"}, 201)

    changes = {
        "User-Agent": "client/2",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "X-Request-ID": "77",
        "Accept-Encoding": "br",
        "Cookie": "session=2",
        "X-Forwarded-For": "192.0.2.7",
        "Content-Type": "application/json; charset=utf-8",
    }
    statuses = {}
    async with _client(app) as client:
        for number, (name, value) in enumerate(changes.items()):
            key = {"Idempotency-Key": f"k-{number}", "Content-Type": "application/json"}
            await client.post("/orders", headers=key, content=b"{}")
            again = await client.post("/orders", headers={**key, name: value}, content=b"{}")
            statuses[name] = again.status_code
    return statuses


@scenario
async def refusals_without_handlers(bench: Bench) -> Any:
    began, finish = asyncio.Event(), asyncio.Event()

    @protected()
    async def app(request: Request):
        began.set()
        await finish.wait()
        return JSONResponse({"status": "created"}, 201)

    async with _client(app) as client:
        missing = await client.post("/orders")
        first = asyncio.create_task(client.post("/orders", headers=KEY, json=1))
        await _soon(began.wait())
        in_progress = await client.post("/orders", headers=KEY, json=1)
        finish.set()
        await first
        mismatch = await client.post("/orders", headers=KEY, json=2)
    return {
        "missing": missing.status_code,
        "in progress": in_progress.status_code,
        "mismatch": mismatch.status_code,
    }


@scenario
async def other_bodies(bench: Bench) -> Any:
    effects: list[str] = []
    app = FastAPI()
    backend = InMemoryBackend()

    @app.post("/binary")
    @idempotent(backend)
    async def binary(request: Request):
        effects.append("binary")
        return JSONResponse({"bytes": len(await request.body())})

    @app.post("/form")
    @idempotent(backend)
    async def form(request: Request, amount: Annotated[int, Form()]):
        effects.append("form")
        return JSONResponse({"amount": amount})

    @app.post("/upload")
    @idempotent(backend)
    async def upload(request: Request, file: Annotated[UploadFile, File()]):
        effects.append("upload")
        return JSONResponse({"bytes": len(await file.read())})

    multipart = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n\xff\xfe\x00\r\n--x--\r\n"
    )
    async with _client(app) as client:
        answers = [
            await client.post(path, headers={**KEY, "Content-Type": content_type}, content=content)
            for path, content_type, content in (
                ("/binary", "application/octet-stream", b"\xff\xfe\x00"),
                ("/form", "application/x-www-form-urlencoded", b"amount=5"),
                ("/upload", "multipart/form-data; boundary=x", multipart),
            )
            for _ in range(2)
        ]
    return {"statuses": [answer.status_code for answer in answers], "effects": effects}


@scenario
async def longer_than_the_ttl(bench: Bench) -> Any:
    began = [asyncio.Event(), asyncio.Event()]
    finish = [asyncio.Event(), asyncio.Event()]
    runs: list[int] = []

    @protected(key_ttl=1)
    async def app(request: Request):
        mine = len(runs)
        runs.append(mine)
        began[mine].set()
        await finish[mine].wait()
        return JSONResponse({"run": mine})

    async with _client(app) as client:
        first = asyncio.create_task(client.post("/orders", headers=KEY))
        await _soon(began[0].wait())
        await asyncio.sleep(1.4)
        second = asyncio.create_task(client.post("/orders", headers=KEY))
        await _either(second, began[1].wait())
        finish[1].set()
        answers = [await second]
        finish[0].set()
        answers += [await first, await client.post("/orders", headers=KEY)]
    return {"answers": [_run(answer) for answer in answers], "executions": len(runs)}


@scenario
async def lock_of_another(bench: Bench) -> Any:
    began = [asyncio.Event() for _ in range(3)]
    finish = [asyncio.Event() for _ in range(3)]
    running = at_once = executions = 0

    @protected(bench.async_backend(), key_ttl=1)
    async def app(request: Request):
        nonlocal running, at_once, executions
        mine = executions
        executions += 1
        running += 1
        at_once = max(at_once, running)
        began[mine].set()
        await finish[mine].wait()
        running -= 1
        raise HTTPException(503)

    async with _client(app) as client:
        first = asyncio.create_task(client.post("/orders", headers=KEY))
        await _soon(began[0].wait())
        await asyncio.sleep(1.4)
        second = asyncio.create_task(client.post("/orders", headers=KEY))
        await _either(second, began[1].wait())
        finish[0].set()
        await first
        third = asyncio.create_task(client.post("/orders", headers=KEY))
        await _either(third, began[executions].wait())
        await asyncio.sleep(0.2)
        for event in finish:
            event.set()
        await asyncio.gather(second, third)
    return {"executions": executions, "at_once": at_once}


@scenario
async def store_full_after_the_effect(bench: Bench) -> Any:
    server = RedisServer()
    effects = 0
    backend = bench.async_backend(server.port)

    @protected(backend, **bench.policy(store_timeout_ms={"claim": 5000, "settle": 500}))
    async def app(request: Request):
        nonlocal effects
        effects += 1
        if effects == 1:
            with server.connect() as admin:
                admin.config_set("maxmemory", 1)
        return JSONResponse({"n": effects}, 201)

    async with _client(app) as client:
        first = await client.post("/orders", headers=KEY)
        second = await client.post("/orders", headers=KEY)
        with server.connect() as admin:
            admin.config_set("maxmemory", 0)
        later = await _until_created(client)
    await bench.close()
    server.close()
    return {
        "first": first.status_code,
        "second": second.status_code,
        "later": later.text,
        "effects": effects,
    }


@scenario
async def store_dies_after_the_effect(bench: Bench) -> Any:
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    effects = 0
    backend = bench.async_backend(server.port)

    @protected(backend, **bench.policy(store_timeout_ms={"claim": 5000, "settle": 500}))
    async def app(request: Request):
        nonlocal effects
        effects += 1
        if effects == 1:
            server.kill()
        return JSONResponse({"n": effects}, 201)

    async with _client(app) as client:
        first = await client.post("/orders", headers=KEY)
        await asyncio.to_thread(server.start)
        later = await _until_created(client)
    await bench.close()
    server.close()
    return {
        "first": first.status_code,
        "marked": first.headers.get("idempotency-stored"),
        "later": later.status_code,
        "effects": effects,
    }


@scenario
async def waiter_of_a_failure(bench: Bench) -> Any:
    began, fail = asyncio.Event(), asyncio.Event()
    effects = 0

    @protected(bench.async_backend(), wait_timeout=5)
    async def app(request: Request):
        nonlocal effects
        effects += 1
        if effects == 1:
            began.set()
            await fail.wait()
            raise HTTPException(503)
        return JSONResponse({"n": effects}, 201)

    async with _client(app) as client:
        first = asyncio.create_task(client.post("/orders", headers=KEY))
        await _soon(began.wait())
        waiter = asyncio.create_task(client.post("/orders", headers=KEY))
        await asyncio.sleep(0.3)  # nothing tells that it waits
        waits = not waiter.done()
        fail.set()
        statuses = [(await first).status_code, (await waiter).status_code]
    return {"waits": waits, "statuses": statuses, "effects": effects}


@scenario
async def two_hundred_waiters(bench: Bench) -> Any:
    """Over a second, in which polling each 100 ms shows."""
    began, finish = asyncio.Event(), asyncio.Event()
    server = RedisServer()
    backend = bench.async_backend(server.port)

    @protected(backend, wait_timeout=10, **bench.policy(waiters_max=1000))
    async def app(request: Request):
        began.set()
        await finish.wait()
        return JSONResponse({"status": "created"}, 201)

    arrived = 0

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        nonlocal arrived
        arrived += 1
        await app(scope, receive, send)

    async with _client(counted) as client:
        first = asyncio.create_task(client.post("/orders", headers=KEY))
        await _soon(began.wait())
        server.reset_statistics()
        waiters = [asyncio.create_task(client.post("/orders", headers=KEY)) for _ in range(200)]
        while arrived <= len(waiters):  # noqa: ASYNC110 - of the application there is no event
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.2)
        finish.set()
        answers = await asyncio.gather(first, *waiters)
    spoken = ("get", "set", "del", "eval", "evalsha", "subscribe", "publish", "pttl", "time")
    commands = server.commands(*spoken)
    await bench.close()
    server.close()
    return {
        "statuses": sorted({answer.status_code for answer in answers}),
        "commands": commands,
    }


@scenario
async def store_stalls_sync(bench: Bench) -> Any:
    server = RedisServer()
    return await _stall(bench, server, bench.sync_backend(server.port))


@scenario
async def store_stalls_async(bench: Bench) -> Any:
    server = RedisServer()
    return await _stall(bench, server, bench.async_backend(server.port))


async def _stall(bench: Bench, server: RedisServer, backend: Any) -> Any:
    """Returns what came first: the order's answer, the health check's, or Redis going on."""
    seen: list[str] = []
    app = FastAPI()

    @app.post("/orders")
    @idempotent(backend, **bench.policy(store_timeout_ms={"claim": 400, "settle": 400}))
    async def create_order(request: Request):
        return JSONResponse({"status": "created"}, 201)

    @app.get("/health")
    async def health():
        return {"status": "fine"}

    def resume() -> None:
        seen.append("redis")
        server.resume()

    async def order(client: httpx.AsyncClient) -> int:
        answer = await client.post("/orders", headers=KEY)
        seen.append("order")
        return answer.status_code

    async def check(client: httpx.AsyncClient) -> None:
        await client.get("/health")
        seen.append("health")

    async with _client(app) as client:
        await client.post("/orders", headers={"Idempotency-Key": "before"})
        server.stall()
        timer = threading.Timer(STALL_SECONDS, resume)
        timer.start()
        ordering = asyncio.create_task(order(client))
        await asyncio.sleep(0)
        await asyncio.gather(ordering, check(client))
        await asyncio.to_thread(timer.join)
    await bench.close()
    server.close()
    return {"seen": seen, "status": ordering.result()}


@scenario
async def evicting_store(bench: Bench) -> Any:
    server = RedisServer("--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru")
    effects = 0
    backend = bench.async_backend(server.port)

    @protected(backend, **bench.policy(on_unsafe_store="refuse"))
    async def app(request: Request):
        nonlocal effects
        effects += 1
        return JSONResponse({"n": effects}, 201)

    keys = [{"Idempotency-Key": f"k-{number}"} for number in range(40)]
    async with _client(app) as client:
        first = [await client.post("/orders", headers=key) for key in keys]
        with server.connect() as other, contextlib.suppress(redis.RedisError):
            for number in range(2000):
                other.set(f"other:{number}", "x" * 10_000)
        second = [await client.post("/orders", headers=key) for key in keys]
    await bench.close()
    server.close()
    return {
        "statuses": sorted({answer.status_code for answer in [*first, *second]}),
        "effects": effects,
    }


@scenario
async def two_cookies(bench: Bench) -> Any:
    @protected(path="/login")
    async def app(request: Request):
        response = JSONResponse({})
        response.set_cookie("session", "one")
        response.set_cookie("device", "two")
        return response

    async with _client(app) as client:
        answers = []
        for _ in range(2):
            answers.append(await client.post("/login", headers=KEY))
            client.cookies.clear()
    return [
        [line.split("=")[0] for line in answer.headers.get_list("set-cookie")] for answer in answers
    ]


@scenario
async def json_bytes(bench: Bench) -> Any:
    class Pretty(JSONResponse):
        def render(self, content: Any) -> bytes:
            return json.dumps(content, indent=4).encode()

    app = FastAPI()
    backend = InMemoryBackend()

    @app.post("/pretty")
    @idempotent(backend)
    async def pretty(request: Request):
        return Pretty({"b": 1.0, "a": "\u00e4"})

    @app.post("/nan")
    @idempotent(backend)
    async def nan(request: Request):
        return Pretty({"price": float("nan")})

    seen = {}
    async with _client(app) as client:
        for path in ("/pretty", "/nan"):
            first, again = [await client.post(path, headers=KEY) for _ in range(2)]
            seen[path] = {
                "status": again.status_code,
                "same bytes": again.content == first.content,
                "whole": again.headers.get("content-length") == str(len(again.content)),
            }
    return seen


@scenario
async def colliding_keys(bench: Bench) -> Any:
    began, finish = asyncio.Event(), asyncio.Event()
    app = FastAPI()
    backend = bench.async_backend()

    @app.post("/orders")
    @idempotent(backend)
    async def create_order(request: Request, hold: bool = False):
        if hold:
            began.set()
            await finish.wait()
        return JSONResponse({"hold": hold}, 201)

    @app.post("/a")
    @idempotent(backend, validate_signature=False)
    async def short(request: Request):
        return JSONResponse({"path": "/a"})

    @app.post("/a:b")
    @idempotent(backend, validate_signature=False)
    async def long(request: Request):
        return JSONResponse({"path": "/a:b"})

    async with _client(app) as client:
        url = "/orders?hold=true"
        holding = asyncio.create_task(client.post(url, headers={"Idempotency-Key": "X"}))
        await _soon(began.wait())
        lock = await client.post("/orders", headers={"Idempotency-Key": "X:lock"})
        finish.set()
        await holding
        await client.post("/a", headers={"Idempotency-Key": "b:c"})
        other = await client.post("/a:b", headers={"Idempotency-Key": "c"})
    return {"X:lock": lock.status_code, "/a:b": other.json()["path"]}


@scenario
async def two_tenants(bench: Bench) -> Any:
    @protected(validate_signature=False)
    async def app(request: Request):
        return JSONResponse({"secret of": request.headers["Authorization"]})

    async with _client(app) as client:
        answers = [
            await client.post("/orders", headers={**KEY, "Authorization": tenant})
            for tenant in ("alice", "mallory")
        ]
    return {
        "status": answers[1].status_code,
        "leaked": "alice" in answers[1].text,
    }


@scenario
async def application_timeout(bench: Bench) -> Any:
    finish = asyncio.Event()
    effects = 0

    @protected()
    async def app(request: Request):
        nonlocal effects
        effects += 1
        await finish.wait()
        return JSONResponse({"n": effects}, 201)

    async def impatient(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.wait_for(app(scope, receive, send), 1)
        except asyncio.TimeoutError:
            await Response(status_code=504)(scope, receive, send)

    async with _client(impatient) as client:
        statuses = [(await client.post("/orders", headers=KEY)).status_code for _ in range(3)]
        finish.set()
        later = await _until_created(client)
    return {"statuses": statuses, "later": later.status_code, "effects": effects}


@scenario
async def huge_key(bench: Bench) -> Any:
    @protected(bench.async_backend())
    async def app(request: Request):
        return JSONResponse({}, 201)

    async with _client(app) as client:
        answer = await client.post("/orders", headers={"Idempotency-Key": "k" * 60_000})
    return answer.status_code


@contextlib.asynccontextmanager
async def _client(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as client:
        yield client


async def _until_created(client: httpx.AsyncClient) -> httpx.Response:
    answer = await client.post("/orders", headers=KEY)
    for _ in range(TRIES_MAX):
        if answer.status_code == 201:
            break
        await asyncio.sleep(0.1)
        answer = await client.post("/orders", headers=KEY)
    return answer


async def _soon(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, WAIT_SECONDS_MAX)


async def _either(*awaitables: Awaitable[Any]) -> None:
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    done, _ = await asyncio.wait(
        tasks, timeout=WAIT_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED
    )
    assert done, "neither happened"
    for task, awaitable in zip(tasks, awaitables, strict=True):
        if task is not awaitable:
            task.cancel()


def _run(answer: httpx.Response) -> Any:
    return answer.json()["run"] if answer.status_code == 200 else answer.status_code


def observe(name: str, port: int) -> Any:
    """Plays a scenario in a new event loop."""

    async def play() -> Any:
        bench = Bench(port)
        try:
            return await SCENARIOS[name](bench)
        finally:
            await bench.close()

    return asyncio.run(play())


def main() -> None:
    warnings.simplefilter("ignore")
    print(json.dumps({"is_ours": IS_OURS}), flush=True)  # noqa: T201
    for line in sys.stdin:
        name, port = json.loads(line)
        try:
            observed = observe(name, port)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other side wants to know
            observed = {"broke": f"{type(error).__name__}: {error}"}
        print(json.dumps(observed), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
