"""`IdempotencyMiddleware`: a whole ASGI application, or chosen routes of it, safe to retry."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.requests import Request

from ._application_routes import report_hidden, report_unmatched
from ._backend import backend_of, check_safety
from ._capture import Capture, without_shortcuts
from ._context_variables import ContextVariables
from ._driver import Driver
from ._engine import NO_ASYNCIO, drain, has_asyncio
from ._engines import engines_of
from ._execution import CURRENT, OUTCOME
from ._idemptx import ANSWER, OWN, PASS, READ_BODY, REPLAY
from ._openapi import annotate_application
from ._outcomes import Observer
from ._patterns import Pattern, parse_pattern
from ._request import begin, operation_of, read_body, route_path
from ._rules import asks_a_probe, check_function, check_plain, make_rules
from ._scope import Scoping
from ._waiting import ClientLeft

if TYPE_CHECKING:
    from contextvars import Context

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ._engine import Engine
    from ._idemptx import Exchange, Rules
    from ._orphan import Orphan
    from ._outcomes import RequestOutcome
    from ._storage_backend import AsyncStorageBackend, StorageBackend

__all__ = ["IdempotencyMiddleware"]


class IdempotencyMiddleware:
    """Makes the requests of an ASGI application that carry a key safe to retry.

    A retry is answered before routing, dependencies and validation run. Place it inside
    authentication, rate limits and CORS, and outside of all that changes responses: a replay is
    the response as it passed through here.

        app.add_middleware(IdempotencyMiddleware, storage_backend=RedisBackend("redis://cache"))

    `routes` selects the requests: patterns such as `"POST /orders"`, `"/payments/*"` or
    `"PATCH /orders/{id}"`, or a mapping from patterns to policy values for that route (`None`
    excludes it). The first match counts; requests without a match pass.
    """

    def __init__(
        self,
        app: ASGIApp,
        storage_backend: StorageBackend | AsyncStorageBackend | str,
        *,
        routes: Sequence[str] | Mapping[str, Mapping[str, Any] | None] | None = None,
        profile: str = "draft",
        policy: Mapping[str, Any] | None = None,
        key_ttl: float | None = None,
        required: bool | None = None,
        wait_timeout: float | None = None,
        validate_signature: bool | None = None,
        signature_headers: Sequence[str] | str | None = None,
        scope: Callable[[Request], Any] | Mapping[str, Any] | str | None = None,
        namespace: str = "",
        accepts: Callable[[str], bool] | None = None,
        probe: Callable[[Orphan], Any] | None = None,
        on_outcome: Callable[[RequestOutcome], object] | None = None,
    ) -> None:
        """Takes the parameters of `idempotent`; the guide explains them.

        Raises `TypeError` or `ValueError` with what to change.
        """
        self.app = app
        check_plain("accepts", accepts)
        check_function("probe", probe)
        backend = backend_of(storage_backend)
        self._engines = engines_of(backend)
        self._engine: Engine | None = None
        self._accepts = accepts
        self._probe = probe
        self._observer = Observer(on_outcome)
        self._is_described = False
        self._is_compared = False
        self._scoping = Scoping(scope) if callable(scope) else None
        overlays = _overlays(routes)
        report_hidden(overlays or ())

        def rules(overlay: Mapping[str, Any], methods: Sequence[str] | None) -> Rules:
            # What a route sets is narrower than a parameter of the whole middleware.
            return make_rules(
                profile=profile,
                policy={**(policy or {}), **overlay},
                key_ttl=key_ttl if "retain_ms" not in overlay else None,
                required=required if "required" not in overlay else None,
                wait_timeout=wait_timeout if "wait_ms" not in overlay else None,
                validate_signature=validate_signature if "fingerprint" not in overlay else None,
                signature_headers=signature_headers if "fingerprint" not in overlay else None,
                scope=scope if "scope" not in overlay else None,
                methods=methods,
                namespace=namespace,
                has_probe=None if probe is not None else False,
            )

        self._everywhere = rules({}, None) if overlays is None else None
        self._routes = [
            _Route(pattern, None if overlay is None else rules(overlay, pattern.methods))
            for pattern, overlay in overlays or ()
        ]
        for rules_of_some in self._all_rules():
            check_safety(backend, rules_of_some)
        if probe is not None and not any(map(asks_a_probe, self._all_rules())):
            message = 'probe is never asked: set on_orphan to "probe" in a policy, or leave it out'
            raise ValueError(message)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if not self._is_described:
            self._is_described = True
            annotate_application(scope.get("app", self.app), self._rules_of_template)
        if scope["type"] != "http":
            await self._accompany(scope, receive, send)
            return
        if not self._is_compared:
            self._compare()
        rules = self._everywhere or self._rules_for(scope)
        if rules is None:
            await self.app(scope, receive, send)
            return
        operation = operation_of(scope)
        exchange = begin(rules, scope, operation, self._accepts)
        if self._scoping is not None and self._scoping.asks_for(rules, exchange):
            principal = await self._scoping.of(Request(scope, _no_body))
            if principal is not None:
                exchange = begin(rules, scope, operation, self._accepts, principal)
        if exchange is None:
            await self.app(scope, receive, _undirected(send))
            return
        read: list[Message] = []
        action = exchange.action
        if action == READ_BODY:
            engine = self._engine_here(rules)
            read, action = await read_body(exchange, receive, engine.memory)
        if action == ANSWER:
            self._observer.note(exchange, operation)
            if exchange.answer == REPLAY:
                await _replay(exchange, send)
            else:
                await self._answer(exchange, None, _Call(self.app, scope, read, receive), send)
            return
        call = _Call(self.app, scope, read, receive)
        outer = CURRENT.get()
        if outer is not None and outer.covers(engine, exchange, operation):
            await self.app(scope, call.receive, send)
            return
        driver = Driver(
            engine,
            rules,
            exchange,
            operation,
            observer=self._observer,
            probe=self._probe,
            receive=receive,
        )
        try:
            await driver.drive(call)
        except ClientLeft:
            return
        finally:
            call.copy_context_back()
        await self._answer(exchange, driver, call, send)

    async def _answer(
        self, exchange: Exchange, driver: Driver | None, call: _Call, send: Send
    ) -> None:
        answer = exchange.answer
        if answer == REPLAY:
            await _replay(exchange, send)
        elif answer == OWN and call.capture is not None:
            capture = call.capture
            await capture.send_to(send, exchange.marked(capture.headers))
        elif answer == PASS:
            await self.app(call.scope, call.receive, _marking(exchange, send))
        elif driver is not None and driver.error is not None:
            call.abandon()
            # An application's own error means more to the layers around us than our problem.
            raise driver.error
        else:
            call.abandon()
            await _refuse(exchange, call.scope, send)
        if driver is not None:
            await driver.finished()
            call.copy_context_back()

    def _engine_here(self, rules: Rules) -> Engine:
        engine = self._engine
        if engine is None or engine.loop is not asyncio.get_running_loop() or engine.is_closed:
            self._engine = engine = self._engines.here()
        if rules not in engine.adopted:
            engine.adopt(rules)
        return engine

    def _compare(self) -> None:
        """Compares the patterns with the application's routes, once it has them all."""
        self._is_compared = True
        report_unmatched([(it.pattern, it.rules) for it in self._routes], self.app)

    def _all_rules(self) -> list[Rules]:
        every = [self._everywhere, *(route.rules for route in self._routes)]
        return [rules for rules in every if rules is not None]

    def _rules_of_template(self, method: str, path: str) -> Rules | None:
        """The rules of an operation of the application's document, if they cover it."""
        rules = self._everywhere or self._rules_of(method, path)
        if rules is None or method not in json.loads(rules.to_json())["methods"]:
            return None
        return rules

    def _rules_for(self, scope: Scope) -> Rules | None:
        return self._rules_of(scope["method"], route_path(scope))

    def _rules_of(self, method: str, path: str) -> Rules | None:
        for route in self._routes:
            if route.pattern.fits(method, path):
                return route.rules
        return None

    async def _accompany(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what is no request; refuses to start in a loop that is not asyncio's."""
        if scope["type"] == "lifespan":
            if not has_asyncio():
                await send({"type": "lifespan.startup.failed", "message": NO_ASYNCIO})
                return
            receive, send = self._accompanied(receive), self._comparing(send)
        await self.app(scope, receive, send)

    def _accompanied(self, receive: Receive) -> Receive:
        """Wraps the lifespan: checks the store's guarantees at start-up, drains at shutdown.

        Shutdown waits until no work continues without a client.
        """
        all_rules = self._all_rules()

        async def receive_accompanied() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                for rules in all_rules:
                    self._engine_here(rules)
            elif message["type"] == "lifespan.shutdown" and all_rules:
                await drain(max(rules.drain for rules in all_rules))
            return message

        return receive_accompanied

    def _comparing(self, send: Send) -> Send:
        async def send_comparing(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._compare()
            await send(message)

        return send_comparing


class _Call:
    """The inner application's call, as the driver runs it."""

    __slots__ = ("_app", "_contexts", "_read", "_receive", "_variables", "capture", "scope")

    def __init__(self, app: ASGIApp, scope: Scope, read: list[Message], receive: Receive) -> None:
        self._app = app
        self._read = read
        self._receive = receive
        self.scope = scope
        self.capture: Capture | None = None
        self._contexts: list[Context] = []
        self._variables: ContextVariables | None = None

    async def run(self, driver: Driver) -> None:
        self.capture = capture = Capture(driver, self)
        self._variables = ContextVariables()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._contexts.append(copy_context())
            await capture.send(message)

        # Not a copy: layers outside look for the route there, which the application's router notes.
        extensions = self.scope.get("extensions")
        self.scope.update(without_shortcuts(self.scope))
        try:
            await self._app(self.scope, self.receive, send)
        finally:
            if extensions is not None:
                self.scope["extensions"] = extensions
            self._contexts.append(copy_context())
            if capture.is_live:
                await capture.ended()

    def copy_context_back(self) -> None:
        """Sets the application's context variables in the client's task.

        Before the response is sent they are as at its head, and afterwards as at the end.
        """
        if self._variables is not None and self._contexts:
            self._variables.copy_from(self._contexts.pop(0))

    async def end_function_scope(self) -> None:
        """Does nothing: the application has ended its own before its response came here."""

    async def receive(self) -> Message:
        """Gives what was read, and then what the client sends, or the end."""
        if self._read:
            return self._read.pop(0)
        if self.capture is None:
            return await self._receive()
        return await self.capture.receive(self._receive)

    def abandon(self) -> None:
        """Lets a live body end whose response is not sent."""
        if self.capture is not None:
            self.capture.abandon()


class _Route(NamedTuple):
    pattern: Pattern
    rules: Rules | None


def _overlays(
    routes: Sequence[str] | Mapping[str, Mapping[str, Any] | None] | None,
) -> list[tuple[Pattern, Mapping[str, Any] | None]] | None:
    if routes is None:
        return None
    if isinstance(routes, (str, bytes)) or not isinstance(routes, Iterable):
        message = "routes is a list of patterns, or a mapping from patterns to policies"
        raise TypeError(message)
    named = list(routes.items()) if isinstance(routes, Mapping) else [(it, {}) for it in routes]
    if not named:
        message = "routes is empty: nothing would be protected; leave it out to protect all"
        raise ValueError(message)
    for text, overlay in named:
        if overlay is not None and not isinstance(overlay, Mapping):
            message = f"the policy of {text!r} is a mapping, or None for no protection"
            raise TypeError(message)
    return [(parse_pattern(text), overlay) for text, overlay in named]


def _marking(exchange: Exchange, send: Send) -> Send:
    async def send_marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": exchange.marked(message.get("headers", ()))}
        await send(message)

    return send_marked


def _undirected(send: Send) -> Send:
    """Removes the handler's `Idempotency-Outcome` header from the response."""

    async def send_undirected(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            if any(name.lower() == OUTCOME for name, _ in headers):
                kept = [line for line in headers if line[0].lower() != OUTCOME]
                message = {**message, "headers": kept}
        await send(message)

    return send_undirected


async def _no_body() -> Message:
    raise RuntimeError(HEAD_ALONE)


async def _replay(exchange: Exchange, send: Send) -> None:
    status, headers, body = exchange.replay()
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refuse(exchange: Exchange, scope: Scope, send: Send) -> None:
    refusal = exchange.refusal(scope.get("http_version", "1.1"))
    start = {"type": "http.response.start", "status": refusal.status, "headers": refusal.headers}
    await send(start)
    await send({"type": "http.response.body", "body": refusal.body})


HEAD_ALONE = (
    "the middleware asks the scope function before the body has been read: take the scope from the "
    "request's head or state, or protect this route with the decorator"
)
