"""Compares the middleware's patterns with the routes of the application below it."""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.applications import Starlette
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles

from ._patterns import ANYTHING, Pattern, Template, overlap, template_of
from ._reports import report_setting

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from ._idemptx import Rules

__all__ = ["DEPTH_MAX", "mounts_of", "report_hidden", "report_unmatched", "with_attribute"]


def report_hidden(routes: Sequence[tuple[Pattern, Mapping[str, Any] | None]]) -> None:
    """Logs each pattern whose requests an earlier one takes, with another policy."""
    for number, (pattern, overlay) in enumerate(routes):
        earlier = next((it for it in routes[:number] if it[0].covers(pattern)), None)
        if earlier is not None and earlier[1] != overlay:
            report_setting(
                f"the pattern {pattern.text!r} is never reached: {earlier[0].text!r} stands before "
                "it and matches all of its requests; put the narrower one first"
            )


def report_unmatched(routes: Sequence[tuple[Pattern, Rules | None]], application: Any) -> None:
    """Logs each pattern that no route of the application has a request for.

    `None` for rules excludes requests. Says nothing of what the application may answer without a
    route of Starlette's.
    """
    known = list(_routes_of(application, "", 0)) if routes else []
    for pattern, rules in routes:
        methods = pattern.methods if rules is None else json.loads(rules.to_json())["methods"]
        there = [it for it in known if overlap(pattern.template, it.template)]
        if any(it.takes(methods) for it in there):
            continue
        effect = "excludes nothing" if rules is None else "protects nothing"
        report_setting(f"the pattern {pattern.text!r} {effect}: {_advice(pattern, there, known)}")


class _ApplicationRoute(NamedTuple):
    path: str
    template: Template
    methods: Collection[str] | None

    def takes(self, methods: Collection[str] | None) -> bool:
        """True if it has a request with one of these methods; `None` is any."""
        return self.methods is None or methods is None or not set(methods).isdisjoint(self.methods)


def _advice(
    pattern: Pattern, there: Sequence[_ApplicationRoute], known: Sequence[_ApplicationRoute]
) -> str:
    if there:
        methods = sorted({method for route in there for method in route.methods or ()})
        return (
            f"the application has routes there only for {', '.join(methods)}; correct the pattern, "
            "or the `methods` of the policy"
        )
    path = pattern.text.strip().rpartition(" ")[2]
    near = difflib.get_close_matches(path, [route.path for route in known], n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return (
        "the application has no such route; a pattern is compared with the whole path below the "
        f"middleware, with the prefixes of routers and mounts{meant}"
    )


def _routes_of(application: Any, prefix: str, depth: int) -> Iterator[_ApplicationRoute]:
    """The routes of an application, and of those that are mounted in it, below a prefix."""
    router = _router_of(application)
    if router is None or depth > DEPTH_MAX:
        yield _anything(prefix)
        return
    # What has no route is not found, unless the application chose something else.
    if getattr(router.default, "__func__", None) is not Router.not_found:
        yield _anything(prefix)
    for route in router.routes:
        yield from _routes_in(route, prefix, depth)


def _routes_in(route: Any, prefix: str, depth: int) -> Iterator[_ApplicationRoute]:
    if isinstance(route, Route):
        path = prefix + route.path
        yield _ApplicationRoute(path, template_of(path), route.methods)
    elif isinstance(route, Mount):
        path = prefix + route.path
        if isinstance(route.app, StaticFiles):
            yield _anything(f"{path}/", ("GET", "HEAD"))
        else:
            yield from _routes_of(route.app, path, depth + 1)
    elif isinstance(route, Host):
        yield from _routes_of(route.app, prefix, depth + 1)
    elif hasattr(route, "original_router"):  # as FastAPI of 2026 includes a router
        included = getattr(getattr(route, "include_context", None), "prefix", None)
        if isinstance(included, str):
            yield from _routes_of(route.original_router, prefix + included, depth + 1)
        else:
            yield _anything(prefix)
    elif not isinstance(route, WebSocketRoute):
        yield _anything(prefix)


def _router_of(application: Any) -> Router | None:
    """The router below an application's middleware, where that is Starlette's or alike."""
    for _ in range(DEPTH_MAX):
        if isinstance(application, Starlette):
            application = application.router
        if isinstance(application, Router):
            return application
        application = getattr(application, "app", None)
    return None


def mounts_of(application: Any) -> Iterator[tuple[str, Any]]:
    """The applications that are mounted in another, each with its prefix."""
    router = _router_of(application)
    for route in router.routes if router is not None else ():
        if isinstance(route, Mount):
            yield route.path, route.app
        elif isinstance(route, Host):
            yield "", route.app


def with_attribute(application: Any, name: str) -> Any:
    """The outermost layer of an application that has an attribute; `None` without one."""
    for _ in range(DEPTH_MAX):
        if application is None or hasattr(application, name):
            return application
        application = getattr(application, "app", None)
    return None


def _anything(prefix: str, methods: Collection[str] | None = None) -> _ApplicationRoute:
    return _ApplicationRoute(f"{prefix}*", (*template_of(prefix), ANYTHING), methods)


DEPTH_MAX = 32
"""The layers of middleware, and the mounts in each other, that are looked through."""
