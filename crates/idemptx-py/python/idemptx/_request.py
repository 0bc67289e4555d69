"""Reads an ASGI request for an exchange."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from ._idemptx import READ_BODY
from ._reports import report_concern

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Message, Receive, Scope

    from ._idemptx import Exchange, MemoryStore, Rules

__all__ = ["begin", "operation_of", "raw_path", "read_body", "route_path"]


def raw_path(scope: Scope) -> bytes:
    """Returns the path as the client sent it, with the prefix of mounts and of a proxy."""
    raw: bytes | None = scope.get("raw_path")
    if not raw:
        raw = _quoted(scope["path"])
    elif QUESTION_MARK in raw:
        raw = raw.partition(b"?")[0]  # Some servers leave the query where it does not belong.
    # In a mount `root_path` has the mount's path as well, which is part of the path already.
    mounted: str = scope.get("app_root_path", scope.get("root_path", ""))
    if not mounted:
        return raw
    root = _quoted(mounted.rstrip("/"))
    # A proxy that removes the prefix, and a server that does not add it again.
    return raw if raw == root or raw.startswith(root + b"/") else root + raw


def begin(
    rules: Rules,
    scope: Scope,
    operation: tuple[str, bytes],
    accepts: Callable[[str], bool] | None,
    principal: str | None = None,
) -> Exchange | None:
    """Begins an exchange with a request's head, in the scope of a principal."""
    exchange = rules.begin(
        *operation,
        scope["query_string"],
        scope["headers"],
        principal,
        accepts,
    )
    if exchange is not None and exchange.concern is not None:
        report_concern(exchange.concern)
    return exchange


def operation_of(scope: Scope) -> tuple[str, bytes]:
    """Returns method and path, which tell operations apart that share a key."""
    return scope["method"], raw_path(scope)


def route_path(scope: Scope) -> str:
    """Returns the path that an application's routes are compared with, as Starlette does."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _quoted(path: str) -> bytes:
    return quote(path, safe="/%:@!$&'()*+,;=~").encode("ascii")


async def read_body(
    exchange: Exchange, receive: Receive, memory: MemoryStore | None
) -> tuple[list[Message], int]:
    """Reads the body into the exchange; returns the messages read, and the next action.

    A result that is in `memory` answers the exchange at once.
    """
    read: list[Message] = []
    while True:
        message = await receive()
        read.append(message)
        if message["type"] == "http.disconnect":
            return read, exchange.body_failed()
        action = exchange.read(message.get("body", b""), message.get("more_body", False), memory)
        if action != READ_BODY:
            return read, action


QUESTION_MARK = ord("?")
"""Bytes are searched for a number without an exception in between."""
