"""`@idempotent`: one route of a FastAPI or Starlette application, safe to retry."""

from __future__ import annotations

import asyncio
import functools
import sys
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from . import _fastapi
from ._backend import backend_of, check_safety
from ._driver import Driver
from ._engines import engines_of
from ._execution import CURRENT
from ._handler_call import HandlerCall, Reply, other_answer
from ._idemptx import ANSWER, OWN, PASS, READ_BODY, REPLAY
from ._openapi import annotate_routes_of
from ._outcomes import Observer
from ._request import begin, operation_of
from ._request_body import feed
from ._rules import METHODS, check_flag, check_function, check_plain, make_rules
from ._scope import Scoping
from ._signature import Signature, is_registered
from ._waiting import ClientLeft

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from starlette.requests import Request

    from ._engine import Engine
    from ._idemptx import Exchange, Rules
    from ._orphan import Orphan
    from ._outcomes import RequestOutcome
    from ._storage_backend import AsyncStorageBackend, StorageBackend

__all__ = ["idempotent"]

P = ParamSpec("P")
R = TypeVar("R")


def idempotent(
    storage_backend: StorageBackend | AsyncStorageBackend | str,
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
    on_outcome: Callable[[RequestOutcome], object] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a route safe to retry: the first request runs it, retries get the same answer.

    Goes below the route's own decorator:

        @app.post("/orders")
        @idempotent(storage_backend=RedisBackend("redis://localhost"))
        async def create_order(order: Order) -> Receipt: ...

    The handler may be `def` or `async def` and return whatever its route may return.

    - `storage_backend`: where records are kept: a backend, or a URL as for `from_url`.
    - `key_ttl`: the seconds for which a response is replayed; 300 in the profile `idemptx`.
    - `required`: whether a request must have a key; it must, unless this or the policy says no.
    - `wait_timeout`: the seconds that a duplicate waits for the first to finish; 0 refuses it.
    - `validate_signature`: whether a key that is used for another request is refused.
    - `signature_headers`: which headers make it another request, besides method, URL and body: a
      list of names, or `"all"` but those of one try, such as `X-Request-Id`.
    - `profile`, `policy`: a named set of defaults, and what is laid over it.
    - `scope`: the owner of a key: a function of the request, or as in the policy.
    - `namespace`: the name of the service, where several services share one store.
    - `accepts`: the application's own check of a key's form.
    - `probe`: the application's knowledge of a lost execution, for `on_orphan="probe"`: `None` if
      unknown, `False` if it did not happen, or its response.
    - `detach`: the handler runs in a separate task, so that a client that leaves does not cancel
      it. Turn it off where dependencies and handler share what belongs to a task, such as an
      `async_scoped_session` with `scopefunc=current_task`.
    - `on_outcome`: a function that is told of each request's outcome, in the event loop.

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
        has_probe=probe is not None,
    )
    check_plain("accepts", accepts)
    check_function("probe", probe)
    check_flag("detach", detach)
    backend = backend_of(storage_backend)
    check_safety(backend, rules)
    observer = Observer(on_outcome)
    scoping = Scoping(scope) if callable(scope) else None
    route = _Route(backend, rules, scoping, accepts, probe, observer=observer, detach=detach)

    def decorate(handler: Callable[P, R]) -> Callable[P, R]:
        if is_registered(handler, sys._getframe(1)):  # noqa: SLF001
            raise TypeError(ABOVE)
        return route.protect(handler)

    return decorate


class _Route:
    """State that all requests to a decorated handler share."""

    def __init__(
        self,
        backend: StorageBackend | AsyncStorageBackend,
        rules: Rules,
        scoping: Scoping | None,
        accepts: Callable[[str], bool] | None,
        probe: Callable[[Orphan], Any] | None,
        *,
        observer: Observer,
        detach: bool,
    ) -> None:
        self._engines = engines_of(backend)
        self._engine: Engine | None = None
        self._rules = rules
        self._scoping = scoping
        self._accepts = accepts
        self._probe = probe
        self._observer = observer
        self._detach = detach
        annotate_routes_of(RULES)
        _fastapi.call_at_start(START)

    def protect(self, handler: Callable[P, R]) -> Callable[P, R]:
        if hasattr(handler, RULES):
            raise TypeError(TWICE)
        signature = Signature(handler)

        @functools.wraps(handler)
        async def protected(*args: Any, **kwargs: Any) -> Any:
            request, response, tasks = signature.take(args, kwargs)
            if _fastapi.is_dependency(request.scope, protected):
                raise TypeError(DEPENDENCY)
            operation = operation_of(request.scope)
            exchange = begin(self._rules, request.scope, operation, self._accepts)
            if self._scoping is not None and self._scoping.asks_for(self._rules, exchange):
                principal = await self._scoping.of(request)
                if principal is not None:
                    exchange = begin(
                        self._rules, request.scope, operation, self._accepts, principal
                    )
            engine: Engine | None = None
            if exchange is not None and exchange.action == READ_BODY:
                engine = self._engine_here()
                await feed(exchange, request, engine.memory)
            call = HandlerCall(signature, args, kwargs, request, response=response, tasks=tasks)
            if exchange is None:
                return await call.plainly(self._rules)
            return await self._answer(exchange, engine, operation, call)

        # This signature counts, not that of `__wrapped__`: its annotations are resolved.
        protected.__signature__ = signature.shown  # type: ignore[attr-defined]
        setattr(protected, RULES, self._rules)
        setattr(protected, START, self._engine_here)
        return cast("Callable[P, R]", protected)

    async def _answer(
        self,
        exchange: Exchange,
        engine: Engine | None,
        operation: tuple[str, bytes],
        call: HandlerCall,
    ) -> Any:
        driver: Driver | None = None
        if engine is None or exchange.action == ANSWER:
            self._observer.note(exchange, operation)
        else:
            outer = CURRENT.get()
            if outer is not None and outer.covers(engine, exchange, operation):
                return await call.plainly(self._rules)
            driver = Driver(
                engine,
                self._rules,
                exchange,
                operation,
                observer=self._observer,
                probe=self._probe,
                receive=call.request.receive,
            )
            try:
                await driver.drive(call, detached=self._detach, defers=True)
            except asyncio.CancelledError:
                if driver.client_left:
                    call.outlive_request(driver)
                raise
            except ClientLeft:
                return Reply(CLIENT_CLOSED_REQUEST, [], b"")  # It will not be sent.
            finally:
                call.copy_context_back()
            if driver.pending is not None:
                reply = await call.defer(driver)
                if reply is not None:
                    return reply
        return await self._answer_of(exchange, driver, call)

    async def _answer_of(self, exchange: Exchange, driver: Driver | None, call: HandlerCall) -> Any:
        answer = exchange.answer
        if answer == OWN and driver is not None:
            return call.reply(driver)
        if answer == PASS:
            return await call.plainly(exchange)
        call.abandon()
        if answer != REPLAY and driver is not None and driver.error is not None:
            raise driver.error
        return other_answer(exchange, call.request)

    def _engine_here(self) -> Engine:
        engine = self._engine
        if engine is None or engine.loop is not asyncio.get_running_loop() or engine.is_closed:
            self._engine = engine = self._engines.here()
        if self._rules not in engine.adopted:
            engine.adopt(self._rules)
        return engine


CLIENT_CLOSED_REQUEST = 499
RULES = "__idemptx_rules__"
START = "__idemptx_start__"
DEPENDENCY = (
    "@idempotent stands on a dependency, whose route runs whatever it answers: write it below the "
    "decorator of its route instead"
)
TWICE = "@idempotent stands on this handler twice: write it once, with one backend and one policy"
ABOVE = (
    "@idempotent stands above its route's decorator, which has registered the handler already, "
    "unprotected: write @app.post(…) first, and @idempotent(…) below it"
)
