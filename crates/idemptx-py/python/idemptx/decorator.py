"""`@idempotent`: one route of a FastAPI or Starlette application, safe to retry."""

from __future__ import annotations

import asyncio
import functools
import logging
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from starlette.background import BackgroundTasks
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from . import _fastapi
from ._capture import Capture, never_disconnects, without_shortcuts
from ._driver import Driver
from ._engines import engines_of
from ._execution import CURRENT, current_execution
from ._idemptx import ANSWER, OWN, PASS, READ_BODY, REPLAY
from ._request import begin, operation_of, read_body
from ._rules import METHODS, make_rules
from ._scope import Scoping
from ._signature import Signature
from ._single_flight import ClientLeft
from .exceptions import MissingKeyException, RequestRefusedException, for_refusal
from .transaction import PendingTransaction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextvars import Context

    from starlette.requests import Request
    from starlette.types import Receive, Send
    from starlette.types import Scope as ASGIScope

    from ._driver import Conclusion
    from ._engine import Engine
    from ._execution import ExecutionTransaction
    from ._idemptx import Exchange, Rules
    from ._orphan import Orphan
    from ._storage_backend import AsyncStorageBackend, StorageBackend

__all__ = ["idempotent"]

logger = logging.getLogger("idemptx")

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
    namespace: str = "",
    accepts: Callable[[str], bool] | None = None,
    probe: Callable[[Orphan], Any] | None = None,
    detach: bool = True,
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
    - `scope`: the owner of a key: a function of the request, or as in the policy.
    - `namespace`: the name of the service, where several services share one store.
    - `accepts`: the application's own check of a key's form.
    - `probe`: the application's knowledge of a lost execution, for `on_orphan="probe"`: `None` if
      unknown, `False` if it did not happen, or its response.
    - `detach`: the handler runs in a separate task, so that a client that leaves does not cancel
      it. Turn it off where dependencies and handler share what belongs to a task, such as an
      `async_scoped_session` with `scopefunc=current_task`.

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
        namespace=namespace,
    )
    route = _Route(storage_backend, rules, Scoping(scope), accepts, probe, detach=detach)

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
        *,
        detach: bool,
    ) -> None:
        self._engines = engines_of(backend)
        self._engine: Engine | None = None
        self._rules = rules
        self._scoping = scoping
        self._accepts = accepts
        self._probe = probe
        self._detach = detach

    def protect(self, handler: Callable[P, R]) -> Callable[P, R]:
        signature = Signature(handler)

        @functools.wraps(handler)
        async def protected(*args: Any, **kwargs: Any) -> Any:
            request, response, tasks = signature.take(args, kwargs)
            exchange = await self._begin(request)
            call = _Call(signature, args, kwargs, request, response=response, tasks=tasks)
            if exchange is None:
                return await call.plainly()
            return await self._answer(exchange, call)

        # This signature counts, not that of `__wrapped__`: its annotations are resolved.
        protected.__signature__ = signature.shown  # type: ignore[attr-defined]
        return cast("Callable[P, R]", protected)

    async def _begin(self, request: Request) -> Exchange | None:
        scope = request.scope
        exchange = begin(self._rules, scope, self._accepts)
        if self._scoping.asks_for(self._rules, exchange):
            principal = await self._scoping.of(request)
            if principal is not None:
                exchange = begin(self._rules, scope, self._accepts, principal)
        if exchange is not None and exchange.action == READ_BODY:
            await _feed(exchange, request)
        return exchange

    async def _answer(self, exchange: Exchange, call: _Call) -> Any:
        driver: Driver | None = None
        if exchange.action != ANSWER:
            engine = self._engine_here()
            outer = current_execution()
            operation = operation_of(call.request.scope)
            if outer is not None and outer.covers(engine, exchange, operation):
                return await call.plainly()
            receive = call.request.receive
            driver = Driver(
                engine, self._rules, exchange, operation, probe=self._probe, receive=receive
            )
            try:
                await driver.drive(call, detached=self._detach, defers=True)
            except asyncio.CancelledError:
                if driver.client_left:
                    call.outlive_request(driver)
                raise
            except ClientLeft:
                return _Reply(CLIENT_CLOSED_REQUEST, [], b"")  # It will not be sent.
            finally:
                call.copy_context_back()
            if driver.is_pending:
                reply = await call.defer(driver)
                if reply is not None:
                    return reply
        return await self._answer_of(exchange, driver, call)

    async def _answer_of(self, exchange: Exchange, driver: Driver | None, call: _Call) -> Any:
        answer = exchange.answer
        if answer == OWN and driver is not None:
            return call.reply(driver)
        if answer == PASS:
            return await call.plainly(exchange)
        call.abandon()
        if answer != REPLAY and driver is not None and driver.error is not None:
            raise driver.error
        return _other_answer(exchange, call.request)

    def _engine_here(self) -> Engine:
        engine = self._engine
        if engine is None or engine.loop is not asyncio.get_running_loop() or engine.is_closed:
            self._engine = engine = self._engines.here()
        engine.adopt(self._rules)
        return engine


def _other_answer(exchange: Exchange, request: Request) -> _Reply:
    """The reply without the handler's own response: a replay or a refusal."""
    if exchange.answer == REPLAY:
        return _Reply(*exchange.replay())
    refusal = exchange.refusal()
    exception = for_refusal(refusal)
    if _fastapi.is_handled(request.scope, exception, by_default=False):
        raise exception
    return _Reply(refusal.status, refusal.headers, refusal.body)


class _Call:
    """A handler's call, as the driver runs it."""

    __slots__ = (
        "_args",
        "_background",
        "_capture",
        "_context",
        "_kwargs",
        "_raised",
        "_response",
        "_signature",
        "_stacks",
        "_tasks",
        "request",
    )

    def __init__(
        self,
        signature: Signature,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        request: Request,
        *,
        response: Response | None,
        tasks: BackgroundTasks | None,
    ) -> None:
        self._signature = signature
        self._args = args
        self._kwargs = kwargs
        self.request = request
        self._response = response
        self._tasks = tasks
        self._capture: Capture | None = None
        self._context: Context | None = None
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
                await self._close(self._stacks, error)
        if driver.client_left:
            await self._run_background()

    async def _close(self, stacks: _fastapi.ExitStacks, error: BaseException | None) -> None:
        left = await stacks.unwind(error)
        if left is not None and left is not error:
            logger.error("a dependency failed after its client had left", exc_info=left)

    async def _run_background(self) -> None:
        background, self._background = self._background, None
        if background is not None:
            await background()

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
            # Dependencies add tasks to the same object.
            self._background = self._tasks
        self._capture = capture = Capture(driver, partial(self._respond, driver))
        if _is_plain(response):
            await capture.whole(response.status_code, response.raw_headers, bytes(response.body))
            return
        response.background = None
        await response(without_shortcuts(request.scope), self._receive, capture.send)

    async def _respond(self, driver: Driver, conclusion: Conclusion) -> None:
        """Concludes after everything that can still fail before the response.

        That is done in the client's task: dependencies end in the task that entered them.
        """
        if await driver.hand_over(conclusion):
            return
        if self._stacks is not None:
            await self._stacks.close_function_scope()
        await driver.conclude(conclusion())

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
        try:
            if self._signature.is_async:
                result = await handler(*self._args, **self._kwargs)
            else:
                result = await run_in_threadpool(handler, *self._args, **self._kwargs)
        finally:
            self._context = copy_context()
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

    def copy_context_back(self) -> None:
        """Sets the handler's context variables in the caller's context."""
        context, self._context = self._context, None
        for variable, value in context.items() if context is not None else ():
            if variable is not CURRENT and variable.get(MISSING) is not value:
                variable.set(value)

    async def defer(self, driver: Driver) -> Response | None:
        """Returns the reply that concludes when nothing can fail before it any more.

        `None` if it has been concluded.
        """
        assert self._capture is not None  # noqa: S101 - there is a response
        if self._raised is not None:
            # Dependencies have to see it on its way out, so this reply will not be sent.
            await driver.settle()
            return None
        reply = _OwnReply(self._capture, driver, self)
        _fastapi.when_dependencies_have_ended(self.request.scope, reply.dependencies_ended)
        return reply

    def abandon(self) -> None:
        """Lets a live body end whose response is not sent."""
        if self._capture is not None:
            self._capture.abandon()

    def reply(self, driver: Driver) -> Response:
        """Returns the handler's response for the route."""
        assert self._capture is not None  # noqa: S101 - there is an own answer
        if self._raised is not None:
            # Dependencies of a FastAPI that does not show them have to see it on its way out; the
            # application answers it once more.
            _fastapi.add_headers(self._raised, driver.exchange.marked(()))
            raise self._raised
        return _OwnReply(self._capture, driver, self)

    def outlive_request(self, driver: Driver) -> None:
        """Takes the exit stacks over from a cancelled request, so that the handler keeps them."""
        stacks = _fastapi.ExitStacks.take(self.request.scope)
        if driver.is_pending:
            driver.engine.spawn(self._conclude_alone(driver, stacks))
        else:
            self._stacks = stacks

    async def _conclude_alone(self, driver: Driver, stacks: _fastapi.ExitStacks) -> None:
        error: BaseException | None = None
        try:
            await stacks.close_function_scope()
        except Exception as raised:
            error = raised
            logger.exception("a dependency failed after its client had left")
        await driver.settle(failed=error is not None)
        with suppress(Exception):  # the driver has taken note of it
            await driver.finished()
        await self._close(stacks, error)
        if error is None:
            await self._run_background()

    @property
    def background(self) -> Any:
        """The background tasks of the response."""
        return self._background


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
        # Not None, or FastAPI adds the tasks of dependencies: those are the first request's.
        self.background = BackgroundTasks()


class _OwnReply(Response):
    """The response of a handler that may still be running: its body flows, or is closing.

    It is settled after the dependencies whose end may still fail, or else when it is sent.
    """

    def __init__(  # pyright: ignore[reportMissingSuperCall]
        self, capture: Capture, driver: Driver, call: _Call
    ) -> None:
        self._capture = capture
        self._driver = driver
        self._call = call
        self.status_code = capture.status
        self.raw_headers = list(capture.headers)
        self.body = capture.body
        self.background = call.background
        self._instead: _Reply | None = None
        if not driver.is_pending:
            self.raw_headers = driver.exchange.marked(self.raw_headers)

    async def dependencies_ended(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> bool:
        """Concludes after the function's dependencies, as the last `__aexit__` of their stack."""
        del kind, trace
        if error is None:
            await self._conclude()
        elif isinstance(error, Exception):
            self._call.abandon()
            await self._driver.settle(failed=True)
        else:
            self._call.abandon()
            self._driver.settle_alone(failed=True)
        return False

    async def _conclude(self) -> None:
        driver = self._driver
        if not driver.is_pending:
            return
        try:
            await driver.settle()
        except asyncio.CancelledError:
            driver.client_left = True
            driver.settle_alone()
            raise
        if driver.exchange.answer == OWN:
            self.raw_headers = driver.exchange.marked(self.raw_headers)
        else:
            self._call.abandon()
            self._instead = _other_answer(driver.exchange, self._call.request)

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        await self._conclude()
        if self._instead is not None:
            await self._instead(scope, receive, send)
            return
        try:
            await self._capture.send_to(send, self.raw_headers)
            await self._driver.finished()
        except BaseException:
            if self.background is not None and self._driver.error is None:
                # The operation has happened; what belongs to it does not depend on its client.
                self._driver.engine.spawn(self.background())
            raise
        if self.background is not None:
            await self.background()

    def __del__(self) -> None:
        """Counts as failed where it was never sent: an end of a dependency raised."""
        driver, call = self._driver, self._call
        if driver.is_pending and not driver.engine.loop.is_closed():
            driver.engine.loop.call_soon_threadsafe(call.abandon)
            driver.engine.loop.call_soon_threadsafe(partial(driver.settle_alone, failed=True))


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
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
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


CLIENT_CLOSED_REQUEST = 499
MISSING: Any = object()
FILE_CHUNK = 64 * 1024
