"""A handler's signature, and the signature that its route sees."""

from __future__ import annotations

import functools
import gc
import inspect
import sys
import typing
from typing import Any

from starlette.background import BackgroundTasks
from starlette.requests import Request
from starlette.responses import Response

if typing.TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["Signature", "is_registered"]


class Signature:
    """A handler's parameters, with request, response and background tasks where it has none.

    FastAPI gives one of each to a route, under one name each, so a parameter that
    the handler has is used, and one that it has not is taken away again before the call.
    """

    __slots__ = ("_background", "_request", "_response", "handler", "is_async", "shown")

    def __init__(self, handler: Callable[..., Any]) -> None:
        if _is_any(handler, inspect.isasyncgenfunction) or _is_any(
            handler, inspect.isgeneratorfunction
        ):
            message = (
                f"{getattr(handler, '__name__', handler)!r} is a generator, whose route streams "
                "what it yields: return a StreamingResponse, or use IdempotencyMiddleware"
            )
            raise TypeError(message)
        self.handler = handler
        self.is_async = _is_any(handler, inspect.iscoroutinefunction)
        signature = _resolved(handler)
        parameters = dict(signature.parameters)
        self._request = _named(parameters, Request)
        self._response = _named(parameters, Response)
        self._background = _named(parameters, BackgroundTasks)
        added = []
        # A Starlette endpoint gets its request by position, under any name and annotation.
        if self._request is None and not _takes_bare_request(parameters):
            added.append(_keyword(REQUEST, Request))
        if self._response is None:
            added.append(_keyword(RESPONSE, Response))
        if self._background is None:
            added.append(_keyword(BACKGROUND, BackgroundTasks))
        shown = list(parameters.values())
        variadic = [it for it in shown if it.kind is inspect.Parameter.VAR_KEYWORD]
        shown = [it for it in shown if it.kind is not inspect.Parameter.VAR_KEYWORD]
        self.shown = signature.replace(parameters=[*shown, *added, *variadic])

    def take(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Request, Response | None, BackgroundTasks | None]:
        """Takes what was added out of a call, whose arguments are then the handler's own."""
        added = kwargs.pop(REQUEST, None)
        response = kwargs.pop(RESPONSE, None)
        background = kwargs.pop(BACKGROUND, None)
        if background is None and self._background is not None:
            background = kwargs.get(self._background)
        if response is None and self._response is not None:
            response = kwargs.get(self._response)
        request = added
        if request is None and self._request is not None:
            request = kwargs.get(self._request)
        if request is None:
            request = next(
                (it for it in (*args, *kwargs.values()) if isinstance(it, Request)), None
            )
        if request is None:
            message = (
                f"{self.handler!r} was called without a request: an idempotent handler is called "
                "by its route for HTTP (not a WebSocket's), below whose decorator `@idempotent` "
                "stands"
            )
            raise TypeError(message)
        return request, response, background


def is_registered(handler: Callable[..., Any], caller: FrameType) -> bool:
    """True if a decorator below has made a route of a handler before `caller` decorates it.

    A handler that is passed to a decorator later, in another statement, may have several routes.
    """
    code = getattr(handler, "__code__", None)
    if code is None or code.co_filename != caller.f_code.co_filename:
        return False
    lines = [line for _, _, line in code.co_lines() if line is not None]
    if not code.co_firstlineno <= caller.f_lineno <= max(lines, default=0):
        return False
    # A function that was just made is known to its decorators alone; to ask for more is slow.
    if sys.getrefcount(handler) <= REFERENCES_OF_NEW:
        return False
    return any(_is_route_of(it, handler) for it in gc.get_referrers(handler))


def _is_route_of(referrer: object, handler: Callable[..., Any]) -> bool:
    members = referrer if isinstance(referrer, dict) else getattr(referrer, "__dict__", {})
    return members.get("endpoint") is handler and "path" in members


def _resolved(handler: Callable[..., Any]) -> inspect.Signature:
    """The handler's signature, with annotations that are no longer text."""
    if sys.version_info >= (3, 14):
        from annotationlib import Format  # noqa: PLC0415 - only where it is

        # Annotations are evaluated late, and some names are there for type checkers alone.
        signature = inspect.signature(handler, annotation_format=Format.FORWARDREF)
    else:
        signature = inspect.signature(handler)
    function = inspect.unwrap(handler)
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__globals__"):
        function = type(function).__call__
    names = getattr(function, "__globals__", {})

    def resolve(annotation: Any) -> Any:
        if not isinstance(annotation, str):
            return annotation
        try:
            return eval(annotation, names)  # noqa: S307 - the application's own text
        except NameError:
            # Defined later, or only for type checkers; FastAPI reports it if it needs the type.
            return typing.ForwardRef(annotation)

    return signature.replace(
        parameters=[
            parameter.replace(annotation=resolve(parameter.annotation))
            for parameter in signature.parameters.values()
        ],
        return_annotation=resolve(signature.return_annotation),
    )


def _named(parameters: dict[str, inspect.Parameter], kind: type) -> str | None:
    for name, parameter in parameters.items():
        annotation = parameter.annotation
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        if isinstance(annotation, type) and issubclass(annotation, kind):
            return name
    return None


def _takes_bare_request(parameters: dict[str, inspect.Parameter]) -> bool:
    request = parameters.get("request")
    return request is not None and request.annotation is inspect.Parameter.empty


def _keyword(name: str, kind: type) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)


def _is_any(handler: Callable[..., Any], test: Callable[[Any], bool]) -> bool:
    function: Any = handler
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isfunction(function) or inspect.ismethod(function) or inspect.isclass(function):
        return test(inspect.unwrap(function)) or test(function)
    return test(function) or test(getattr(function, "__call__", None))  # noqa: B004


REFERENCES_OF_NEW = 4
REQUEST = "idemptx_request"
RESPONSE = "idemptx_response"
BACKGROUND = "idemptx_background"
