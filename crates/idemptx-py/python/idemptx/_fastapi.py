"""The few places where FastAPI's own ways have to be known.

A route of FastAPI turns what a handler returns into a response after the handler, and so after
our decorator, has returned. To keep the very bytes that the first client gets, that part of the
route is run once more by itself, with a handler that returns what ours did.
"""

from __future__ import annotations

import copy
import inspect
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.types import Scope

__all__ = ["Stacks", "answer_to", "is_handled", "render"]


async def render(request: Request, result: Any, solved: Response | None) -> Response:
    """The response that the request's route makes of what its handler returned.

    `solved` is the response that dependencies and handler may have put headers and a status into.
    """
    route = request.scope.get("route")
    if route is None or not hasattr(route, "get_route_handler"):
        message = (
            f"the handler returned {type(result).__name__!r} where its route takes a Response: "
            "only FastAPI's routes turn other things into one"
        )
        raise TypeError(message)
    known = _effective(request.scope, route)
    renderer = getattr(known, RENDERER, None)
    if renderer is None:
        renderer = _renderer(route, known)
        setattr(known, RENDERER, renderer)
    request.scope[RESULT] = (result, solved)
    try:
        return await renderer(request)
    finally:
        del request.scope[RESULT]


def is_handled(scope: Scope, exception: Exception) -> bool:
    """Whether the application itself has said what becomes of one of our exceptions."""
    handler = _handler_of(scope, exception)
    return handler is not None and not _is_default(handler)


async def answer_to(request: Request, error: Exception, stacks: Stacks | None) -> Response | None:
    """What the application's handler of this exception answers; `None` without one.

    Dependencies see the exception first, as they would have.
    """
    if _handler_of(request.scope, error) is None:
        return None
    stacks = stacks or Stacks.take(request.scope)
    if stacks is not None:
        error = await stacks.unwind(error) or error
    handler = _handler_of(request.scope, error)
    if handler is None:
        raise error
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004
    ):
        response = await handler(request, error)
    else:
        response = await run_in_threadpool(handler, request, error)
    return response if isinstance(response, Response) else None


class Stacks:
    """What dependencies and forms want closed when a request is over, taken away from it."""

    __slots__ = ("_stacks",)

    def __init__(self, stacks: list[AsyncExitStack]) -> None:
        self._stacks = stacks

    @classmethod
    def take(cls, scope: Scope) -> Stacks | None:
        """Takes them from a request whose FastAPI shows them, innermost first."""
        stacks = [scope[name] for name in STACKS if isinstance(scope.get(name), AsyncExitStack)]
        return cls([stack.pop_all() for stack in stacks]) if stacks else None

    async def unwind(self, error: BaseException | None) -> Exception | None:
        """Closes them; returns the exception that is left, if one is."""
        for stack in self._stacks:
            kind = type(error) if error is not None else None
            trace = error.__traceback__ if error is not None else None
            try:
                if await stack.__aexit__(kind, error, trace):
                    error = None
            except Exception as raised:  # noqa: BLE001 - dependencies may raise another
                error = raised
        return error if isinstance(error, Exception) else None


def _effective(scope: Scope, route: Any) -> Any:
    """What the routers that include the route have made of its settings: FastAPI of 2026 keeps
    that beside the route, earlier versions in a route of its own.
    """
    own = scope.get("fastapi")
    for value in own.values() if isinstance(own, dict) else ():
        if getattr(value, "original_route", None) is route:
            return value
    return route


def _renderer(route: Any, effective: Any) -> Callable[[Request], Awaitable[Response]]:
    from fastapi.dependencies.utils import get_dependant  # noqa: PLC0415 - only where FastAPI is
    from fastapi.routing import APIRoute  # noqa: PLC0415

    async def returned(idemptx_request: Request, idemptx_response: Response) -> Any:
        result, solved = idemptx_request.scope[RESULT]
        if solved is not None:
            if solved.status_code is not None:
                idemptx_response.status_code = solved.status_code
            idemptx_response.raw_headers.extend(solved.raw_headers)
        return result

    # Names are looked up where the function is, which knows them only while checking types.
    returned.__annotations__ = {"idemptx_request": Request, "idemptx_response": Response}
    alone = copy.copy(route)
    alone.dependant = get_dependant(path=route.path_format, call=returned)
    alone.body_field = None
    for name in ("response_class", "response_field", "status_code"):
        setattr(alone, name, getattr(effective, name))
    alone.endpoint = returned
    # Not the route class's own, which may do more than render.
    handler: Callable[[Request], Awaitable[Response]] = APIRoute.get_route_handler(alone)
    return handler


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


def _is_default(handler: Callable[..., Any]) -> bool:
    return getattr(handler, "__module__", "").split(".")[0] in {"fastapi", "starlette"}


RENDERER = "_idemptx_renderer"
RESULT = "idemptx.result"
STACKS = ("fastapi_function_astack", "fastapi_inner_astack", "fastapi_middleware_astack")
