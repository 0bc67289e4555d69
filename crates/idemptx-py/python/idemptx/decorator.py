"""`@idempotent`: one route of a FastAPI or Starlette application, safe to retry."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from starlette.background import BackgroundTasks
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from . import _fastapi
from ._capture import Capture, never_disconnects, without_shortcuts
from ._driver import Driver
from ._engines import engines_of
from ._execution import current_execution
from ._idemptx import ANSWER, OWN, PASS, READ_BODY, REPLAY
from ._request import raw_path, read_body
from ._rules import METHODS, make_rules
from ._scope import Scoping
from ._signature import Signature
from .exceptions import MissingKeyException, RequestRefusedException, for_refusal
from .transaction import PendingTransaction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from starlette.requests import Request
    from starlette.types import Receive, Send
    from starlette.types import Scope as ASGIScope

    from ._engine import Engine
    from ._execution import ExecutionTransaction
    from ._idemptx import Exchange, Rules
    from ._orphan import Orphan
    from ._storage_backend import AsyncStorageBackend, StorageBackend

__all__ = ["idempotent"]

P = ParamSpec("P")
R = TypeVar("R")


def idempotent(
    storage_backend: StorageBackend | AsyncStorageBackend,
    key_ttl: float | None = None,
    required: bool | None = None,
    wait_timeout: float | None = None,
    validate_signature: bool = True,
    *,
    signature_headers: Sequence[str] | str | None = None,
    profile: str = "idemptx",
    policy: Mapping[str, Any] | None = None,
    scope: Callable[[Request], Any] | Mapping[str, Any] | str | None = None,
    accepts: Callable[[str], bool] | None = None,
    probe: Callable[[Orphan], Any] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a route safe to retry: the first request runs it, retries get the same answer.

    Goes below the route's own decorator:

        @app.post("/orders")
        @idempotent(storage_backend=RedisBackend("redis://localhost"))
        async def create_order(order: Order) -> Receipt: ...

    The handler may be `def` or `async def` and return whatever its route may return.

    - `key_ttl`: the seconds for which a response is replayed; 300 in the profile `idemptx`.
    - `required`: whether a request must have a key; it must, unless this or the policy says no.
    - `wait_timeout`: the seconds that a duplicate waits for the first to finish; 0 refuses it.
    - `validate_signature`: whether a key that is used for another request is refused.
    - `signature_headers`: which headers make it another request, besides method, URL and body: a
      list of names, or `"all"`.
    - `profile`, `policy`: a named set of defaults, and what is laid over it.
    - `scope`: the namespace of keys: a function of the request, or as in the policy.
    - `accepts`: the application's own check of a key's form.
    - `probe`: the application's knowledge of a lost execution, for `on_orphan="probe"`: `None` if
      unknown, `False` if it did not happen, or its response.

    Raises `TypeError` or `ValueError` with what to change.
    """
    if required is None and "required" not in (policy or {}):
        required = True
    rules = make_rules(
        profile=profile,
        policy=policy,
        key_ttl=key_ttl,
        required=required,
        wait_timeout=wait_timeout,
        validate_signature=validate_signature,
        signature_headers=signature_headers,
        scope=scope,
        methods=METHODS,
    )
    route = _Route(storage_backend, rules, Scoping(scope), accepts, probe)

    def decorate(handler: Callable[P, R]) -> Callable[P, R]:
        return route.protect(handler)

    return decorate


class _Route:
    """State that all requests to a decorated handler share."""

    def __init__(
        self,
        backend: StorageBackend | AsyncStorageBackend,
        rules: Rules,
        scoping: Scoping,
        accepts: Callable[[str], bool] | None,
        probe: Callable[[Orphan], Any] | None,
    ) -> None:
        self._engines = engines_of(backend)
        self._engine: Engine | None = None
        self._rules = rules
        self._scoping = scoping
        self._accepts = accepts
        self._probe = probe

    def protect(self, handler: Callable[P, R]) -> Callable[P, R]:
        signature = Signature(handler)

        @functools.wraps(handler)
        async def protected(*args: Any, **kwargs: Any) -> Any:
            request, response = signature.take(args, kwargs)
            exchange = await self._begin(request)
            call = _Call(signature, args, kwargs, request, response)
            if exchange is None:
                return await call.plainly()
            return await self._answer(exchange, call)

        # Its own signature, with annotations that need none of the handler's names, counts.
        del protected.__wrapped__
        protected.__signature__ = signature.shown  # type: ignore[attr-defined]
        return cast("Callable[P, R]", protected)

    async def _begin(self, request: Request) -> Exchange | None:
        scope = request.scope
        named = None
        if self._scoping.is_function:
            found = self._scoping.of_request(request)
            named = found if found is None or isinstance(found, str) else await found
        exchange = self._rules.begin(
            scope["method"],
            raw_path(scope),
            scope["query_string"],
            scope["headers"],
            named,
            self._accepts,
        )
        if exchange is not None and exchange.action == READ_BODY:
            await _feed(exchange, request)
        return exchange

    async def _answer(self, exchange: Exchange, call: _Call) -> Any:
        driver: Driver | None = None
        if exchange.action != ANSWER:
            engine = self._engine_here()
            outer = current_execution()
            if outer is not None and outer.covers(engine, exchange):
                return await call.plainly()
            driver = Driver(engine, self._rules, exchange, self._probe)
            try:
                await driver.drive(call)
            except asyncio.CancelledError:
                if driver.client_left:
                    call.outlive_request()
                raise
        answer = exchange.answer
        if answer == OWN and driver is not None:
            return call.reply(driver)
        if answer == REPLAY:
            return _Reply(*exchange.replay())
        if answer == PASS:
            return await call.plainly(exchange)
        if driver is not None and driver.error is not None:
            raise driver.error
        refusal = exchange.refusal()
        exception = for_refusal(refusal)
        if _fastapi.is_handled(call.request.scope, exception, by_default=False):
            raise exception
        return _Reply(refusal.status, refusal.headers, refusal.body)

    def _engine_here(self) -> Engine:
        engine = self._engine
        if engine is None or engine.loop is not asyncio.get_running_loop() or engine.is_closed:
            self._engine = engine = self._engines.here()
        engine.adopt(self._rules)
        return engine


class _Call:
    """A handler's call, as the driver runs it."""

    __slots__ = (
        "_args",
        "_background",
        "_capture",
        "_kwargs",
        "_raised",
        "_response",
        "_signature",
        "_stacks",
        "request",
    )

    def __init__(
        self,
        signature: Signature,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        request: Request,
        response: Response | None,
    ) -> None:
        self._signature = signature
        self._args = args
        self._kwargs = kwargs
        self.request = request
        self._response = response
        self._capture: Capture | None = None
        self._background: Any = None
        self._raised: Exception | None = None
        self._stacks: _fastapi.ExitStacks | None = None

    async def plainly(self, exchange: Exchange | None = None) -> Any:
        """Runs the handler unprotected."""
        if current_execution() is None and any(map(_is_pending, self._kwargs.values())):
            raise _without_execution(exchange)
        result = await self._handle()
        if exchange is not None:
            for name, value in exchange.marked(()):
                target = result if isinstance(result, Response) else self._response
                if target is not None:
                    target.raw_headers.append((name, value))
        return result

    async def run(self, driver: Driver) -> None:
        """Runs the handler under a claim."""
        error: BaseException | None = None
        try:
            await self._run(driver)
        except BaseException as raised:
            error = raised
            raise
        finally:
            if self._capture is not None:
                await self._capture.ended()
            if self._stacks is not None:
                await self._stacks.unwind(error)
        if driver.client_left and self._background is not None:
            await self._background()

    async def _run(self, driver: Driver) -> None:
        request = self.request
        try:
            result = await self._handle()
            if isinstance(result, Response):
                response = result
            else:
                response = await _fastapi.render(
                    request, result, self._response, is_async=self._signature.is_async
                )
        except Exception as error:  # noqa: BLE001 - the application's own handlers decide
            response = await self._answer_to(error, driver)
        self._background = response.background
        if self._background is None:
            self._background = self._tasks()
        self._capture = capture = Capture(driver)
        if _is_plain(response):
            await capture.whole(response.status_code, response.raw_headers, bytes(response.body))
            return
        response.background = None
        await response(without_shortcuts(request.scope), self._receive, capture.send)

    async def _answer_to(self, error: Exception, driver: Driver) -> Response:
        """Returns the application's response to an exception, once dependencies have seen it."""
        scope = self.request.scope
        if self._stacks is not None:
            stacks, self._stacks = self._stacks, None
            error = _exception(await stacks.unwind(error), error)
        elif _fastapi.is_handled(scope, error, by_default=True):
            if _fastapi.ExitStacks.are_shown(scope):
                # In the task that entered them, as they would have.
                left = await driver.in_client(lambda: _fastapi.ExitStacks.take(scope).unwind(error))
                error = _exception(left, error)
            else:
                self._raised = error
        response = await _fastapi.answer_to(self.request, error)
        if response is None:
            raise error
        return response

    async def _handle(self) -> Any:
        handler = self._signature.handler
        opened = await self._begun()
        if self._signature.is_async:
            result = await handler(*self._args, **self._kwargs)
        else:
            result = await run_in_threadpool(handler, *self._args, **self._kwargs)
        if opened is not None:
            await opened.flush()
        return result

    async def _begun(self) -> ExecutionTransaction | None:
        """Replaces a pending transaction in the handler's arguments by an open one."""
        for name, value in self._kwargs.items():
            execution = current_execution() if _is_pending(value) else None
            if execution is not None:
                self._kwargs[name] = await value.transaction.begin(execution)
                return execution.transaction
        return None

    async def _receive(self) -> Any:
        live = self._capture is not None and self._capture.is_live
        return await (self.request.receive if live else never_disconnects)()

    def reply(self, driver: Driver) -> Response:
        """Returns the handler's response for the route."""
        assert self._capture is not None  # noqa: S101 - there is an own answer
        if self._raised is not None:
            # Dependencies of a FastAPI that does not show them have to see it on its way out; the
            # application answers it once more.
            _fastapi.add_headers(self._raised, driver.exchange.marked(()))
            raise self._raised
        return _OwnReply(self._capture, driver, self._background)

    def outlive_request(self) -> None:
        """Takes the exit stacks over from a cancelled request, so that the handler keeps them."""
        self._stacks = _fastapi.ExitStacks.take(self.request.scope)

    def _tasks(self) -> BackgroundTasks | None:
        for value in self._kwargs.values():
            if isinstance(value, BackgroundTasks):
                return value
        return None


def _is_pending(value: object) -> bool:
    return isinstance(value, PendingTransaction)


def _without_execution(exchange: Exchange | None) -> Exception:
    """Returns the error for a transaction dependency that runs unprotected."""
    if exchange is None:
        return MissingKeyException("Missing Idempotency-Key")
    refused = RequestRefusedException("The operation cannot be protected now. Try again later.")
    refused.status_code, refused.code = 503, "store-unavailable"
    return refused


def _exception(left: BaseException | None, error: Exception) -> Exception:
    return left if isinstance(left, Exception) else error


class _Reply(Response):
    """A response with known header lines and body."""

    def __init__(  # pyright: ignore[reportMissingSuperCall]
        self, status: int, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> None:
        self.status_code = status
        self.raw_headers = headers
        self.body = body
        self.background = None


class _OwnReply(Response):
    """The response of a handler that may still be running: its body flows, or is closing."""

    def __init__(  # pyright: ignore[reportMissingSuperCall]
        self, capture: Capture, driver: Driver, background: Any
    ) -> None:
        self._capture = capture
        self._driver = driver
        self.status_code = capture.status
        self.raw_headers = driver.exchange.marked(capture.headers)
        self.body = capture.body
        self.background = background

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        del scope, receive
        await self._capture.send_to(send, self.raw_headers)
        await self._driver.finished()
        if self.background is not None:
            await self.background()


async def _feed(exchange: Exchange, request: Request) -> None:
    """Feeds the body to the exchange, also if it has been read before."""
    known: bytes | None = getattr(request, "_body", None)
    form = getattr(request, "_form", None)
    if known is None and form is not None:
        await _feed_form(exchange, form)
        return
    if known is not None:
        if exchange.feed(known):
            exchange.end_body()
        else:
            exchange.body_too_large()
        return
    if getattr(request, "_stream_consumed", False):
        exchange.body_failed()  # Something before us took it, and kept nothing.
        return
    read, is_all = await read_body(exchange, request.receive)
    chunks = [message.get("body", b"") for message in read]
    while not is_all and exchange.action == ANSWER and exchange.answer == PASS:
        message = await request.receive()
        chunks.append(message.get("body", b""))
        is_all = not message.get("more_body", False)
    request._body = chunks[0] if len(chunks) == 1 else b"".join(chunks)  # noqa: SLF001


async def _feed_form(exchange: Exchange, form: Any) -> None:
    """Feeds a form that FastAPI has parsed: its fields in order, without the boundaries."""
    for name, value in form.multi_items():
        parts = [name.encode()]
        if isinstance(value, str):
            parts.append(value.encode())
        else:
            parts += [(value.filename or "").encode(), (value.content_type or "").encode()]
        head = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        if not exchange.feed(len(parts).to_bytes(1, "big") + head):
            exchange.body_too_large()
            return
        if not isinstance(value, str) and not await _feed_file(exchange, value):
            exchange.body_too_large()
            return
    exchange.end_body()


async def _feed_file(exchange: Exchange, file: Any) -> bool:
    size = 0
    fits = True
    while fits and (chunk := await file.read(FILE_CHUNK)):
        size += len(chunk)
        fits = exchange.feed(chunk)
    await file.seek(0)
    return fits and exchange.feed(size.to_bytes(8, "big"))


def _is_plain(response: Response) -> bool:
    return type(response).__call__ is Response.__call__ and isinstance(
        getattr(response, "body", None), bytes | memoryview
    )


FILE_CHUNK = 64 * 1024
