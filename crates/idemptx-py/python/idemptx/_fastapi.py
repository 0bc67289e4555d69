"""The places that depend on FastAPI's internals.

A route of FastAPI turns what a handler returns into a response after the handler, and so after
our decorator, has returned. To keep the very bytes that the first client gets, the decorator does
that itself, by the same means.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from anyio import CancelScope
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Router

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

__all__ = [
    "ExitStacks",
    "answer_to",
    "call_at_start",
    "is_dependency",
    "is_handled",
    "is_route",
    "render",
    "when_dependencies_have_ended",
]


async def render(
    request: Request, result: Any, solved: Response | None, *, is_async: bool
) -> Response:
    """The response that the request's route makes of what its handler returned.

    `solved` is the response that dependencies and handler may have put headers and a status into.
    """
    route = request.scope.get("route")
    if not is_route(request.scope):
        message = (
            f"the handler returned {type(result).__name__!r} where its route takes a Response: "
            "only FastAPI's routes turn other things into one"
        )
        raise TypeError(message)
    known = _effective(request.scope, route)
    renderer: _Renderer | None = getattr(known, RENDERER, None)
    if renderer is None:
        renderer = _Renderer(known)
        setattr(known, RENDERER, renderer)
    return await renderer.render(result, solved, is_async=is_async)


def is_route(scope: Scope) -> bool:
    """True if the request was routed by FastAPI, and not by Starlette alone."""
    return hasattr(scope.get("route"), "response_class")


def is_dependency(scope: Scope, function: Callable[..., Any]) -> bool:
    """True if the request's route has a function as a dependency, and not as its handler."""
    route = scope.get("route")
    if _is_call(getattr(route, "endpoint", None), function):
        return False
    return _depends_on(getattr(_effective(scope, route), "dependant", None), function)


def _depends_on(dependant: Any, function: Callable[..., Any]) -> bool:
    return any(
        _is_call(it.call, function) or _depends_on(it, function)
        for it in getattr(dependant, "dependencies", ())
    )


def _is_call(call: Any, function: Callable[..., Any]) -> bool:
    return call is function or getattr(call, "__func__", None) is function


def is_handled(scope: Scope, exception: Exception, *, by_default: bool) -> bool:
    """True if the application, or its framework, has a handler for an exception."""
    handler = _handler_of(scope, exception)
    return handler is not None and (by_default or not _is_default(handler, exception))


async def answer_to(request: Request, error: Exception) -> Response | None:
    """Returns the response of the application's exception handler; `None` without one."""
    handler = _handler_of(request.scope, error)
    if handler is None:
        return None
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004
    ):
        response = await handler(request, error)
    else:
        response = await run_in_threadpool(handler, request, error)
    return response if isinstance(response, Response) else None


def add_headers(error: Exception, lines: list[tuple[bytes, bytes]]) -> None:
    """Adds header lines to the response of an HTTP exception."""
    if isinstance(error, HTTPException):
        added = {name.decode("latin-1"): value.decode("latin-1") for name, value in lines}
        error.headers = {**(error.headers or {}), **added}


class ExitStacks:
    """The exit stacks of a request's dependencies and forms, taken over from the request."""

    __slots__ = ("_function", "_stacks")

    def __init__(self, function: AsyncExitStack | None, stacks: list[AsyncExitStack]) -> None:
        self._function = function
        self._stacks = stacks

    @staticmethod
    def are_shown(scope: Scope) -> bool:
        """True if this FastAPI exposes them in the scope, as versions since 2025 do."""
        return any(name in scope for name in STACKS)

    @classmethod
    def take(cls, scope: Scope) -> ExitStacks:
        """Takes them from a request whose FastAPI shows them, innermost first."""
        function, *others = (scope.get(name) for name in STACKS)
        taken = _taken(function) if isinstance(function, AsyncExitStack) else None
        return cls(taken, [_taken(it) for it in others if isinstance(it, AsyncExitStack)])

    async def close_function_scope(self) -> None:
        """Closes dependencies of the function's scope; raises what they raise."""
        stack, self._function = self._function, None
        if stack is not None:
            await stack.aclose()

    async def unwind(self, error: BaseException | None) -> BaseException | None:
        """Closes them; returns the exception that is left, if one is."""
        function, self._function = self._function, None
        for stack in [*([function] if function is not None else []), *self._stacks]:
            kind = type(error) if error is not None else None
            trace = error.__traceback__ if error is not None else None
            try:
                if await stack.__aexit__(kind, error, trace):
                    error = None
            except Exception as raised:  # noqa: BLE001 - dependencies may raise another
                error = raised
        return error


def when_dependencies_have_ended(scope: Scope, call: Callable[..., Awaitable[bool]]) -> None:
    """Has `call` run like `__aexit__` after the last dependency that ends before the response.

    Where no dependency does, it runs at the end of the request.
    """
    stack: Any = None
    for name in STACKS:
        stack = scope.get(name)
        if isinstance(stack, AsyncExitStack):
            break
    else:
        stack = _hidden_stack()
    if stack is not None:
        # At the bottom, where nothing can be pushed by other means: it is closed last.
        stack._exit_callbacks.appendleft((False, call))  # noqa: SLF001


def _hidden_stack() -> AsyncExitStack | None:
    """The stack of dependencies that FastAPI before 0.118 keeps in a local variable.

    It is in a frame of the running task, unless another decorator calls ours from a separate task.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "fastapi.routing":
            stack = frame.f_locals.get("async_exit_stack")
            if isinstance(stack, AsyncExitStack):
                return stack
        frame = frame.f_back
    return None


def call_at_start(attribute: str) -> None:
    """Has an application's lifespan begin with a call of this attribute of each route's endpoint.

    A decorator sees no application, and no loop before the first request.
    """
    original = Router.lifespan
    if hasattr(original, STARTS):
        return

    @functools.wraps(original)
    async def lifespan(self: Router, scope: Scope, receive: Receive, send: Send) -> None:
        for start in _endpoints_with(self, attribute):
            start()
        await original(self, scope, receive, send)

    setattr(lifespan, STARTS, True)
    Router.lifespan = lifespan  # type: ignore[method-assign]


def _endpoints_with(owner: Any, attribute: str, depth: int = 0) -> Iterator[Callable[[], object]]:
    """The attribute of every endpoint that has it, in mounted applications and routers too."""
    for route in getattr(owner, "routes", None) or ():
        start = getattr(getattr(route, "endpoint", None), attribute, None)
        if start is not None:
            yield start
        elif depth < MOUNTS_MAX:
            inner = route if hasattr(route, "routes") else getattr(route, "original_router", None)
            yield from _endpoints_with(inner, attribute, depth + 1)


def _taken(stack: AsyncExitStack) -> AsyncExitStack:
    """Moves a stack's callbacks, except cancel scopes, which stay with their task."""
    taken = stack.pop_all()
    theirs = taken._exit_callbacks  # type: ignore[attr-defined] # noqa: SLF001
    for entry in [it for it in theirs if isinstance(getattr(it[1], "__self__", None), CancelScope)]:
        theirs.remove(entry)
        stack._exit_callbacks.append(entry)  # type: ignore[attr-defined] # noqa: SLF001
    return taken


def _effective(scope: Scope, route: Any) -> Any:
    """Returns the route's settings as merged by the routers that include it.

    FastAPI of 2026 keeps them beside the route, earlier versions in a separate route.
    """
    own = scope.get("fastapi")
    for value in own.values() if isinstance(own, dict) else ():
        if getattr(value, "original_route", None) is route:
            return value
    return route


class _Renderer:
    """Renders a handler's result as FastAPI would after the decorator has returned."""

    def __init__(self, route: Any) -> None:
        from fastapi import routing  # noqa: PLC0415 - only where FastAPI is
        from fastapi.datastructures import DefaultPlaceholder  # noqa: PLC0415
        from fastapi.utils import is_body_allowed_for_status_code  # noqa: PLC0415

        self._serialize = routing.serialize_response
        self._allows_body = is_body_allowed_for_status_code
        self._status: int | None = route.status_code
        # Before 2025 a route had a second field, for validation alone.
        field = getattr(route, "secure_cloned_response_field", None) or route.response_field
        chosen = not isinstance(route.response_class, DefaultPlaceholder)
        self._class = route.response_class if chosen else route.response_class.value
        self._fixed = {
            "field": field,
            "include": route.response_model_include,
            "exclude": route.response_model_exclude,
            "by_alias": route.response_model_by_alias,
            "exclude_unset": route.response_model_exclude_unset,
            "exclude_defaults": route.response_model_exclude_defaults,
            "exclude_none": route.response_model_exclude_none,
        }
        # Since 2026 the bytes come from Pydantic where nothing else was chosen.
        known = inspect.signature(self._serialize).parameters
        self._dumps = "dump_json" in known and field is not None and not chosen
        if self._dumps:
            self._fixed["dump_json"] = True

    async def render(self, result: Any, solved: Response | None, *, is_async: bool) -> Response:
        content = await self._serialize(
            response_content=result, is_coroutine=is_async, **self._fixed
        )
        arguments: dict[str, Any] = {}
        status = self._status
        if solved is not None and solved.status_code:
            status = solved.status_code
        if status is not None:
            arguments["status_code"] = status
        response: Response
        if self._dumps:
            response = Response(content, media_type="application/json", **arguments)
        else:
            response = self._class(content, **arguments)
        if not self._allows_body(response.status_code):
            response.body = b""
        if solved is not None:
            response.raw_headers.extend(solved.raw_headers)
        return response


def _handler_of(scope: Scope, error: Exception) -> Callable[..., Any] | None:
    handlers: tuple[Mapping[type, Any], Mapping[int, Any]]
    handlers = scope.get("starlette.exception_handlers", ({}, {}))
    by_class, by_status = handlers
    if isinstance(error, HTTPException):
        handler = by_status.get(error.status_code)
        if handler is not None:
            return handler  # type: ignore[no-any-return]
    for kind in type(error).__mro__:
        if kind in by_class:
            return by_class[kind]  # type: ignore[no-any-return]
    return None


def _is_default(handler: Callable[..., Any], error: Exception) -> bool:
    origin = _origin(handler)
    if origin == "sentry_sdk":
        # Its integration replaces every handler by one function, which closes over the originals.
        found = inspect.getclosurevars(handler).nonlocals.get("old_handlers")
        originals = found if isinstance(found, dict) else {}
        original = next((originals[it] for it in type(error).__mro__ if it in originals), None)
        return original is None or _origin(original) in DEFAULTS
    return origin in DEFAULTS


def _origin(handler: Callable[..., Any]) -> str:
    return getattr(handler, "__module__", "").split(".")[0]


DEFAULTS = frozenset({"fastapi", "starlette"})
RENDERER = "_idemptx_renderer"
STARTS = "__idemptx_starts__"
MOUNTS_MAX = 8
STACKS = ("fastapi_function_astack", "fastapi_inner_astack", "fastapi_middleware_astack")
