"""Reads an ASGI request for an exchange."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from ._idemptx import READ_BODY

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope

    from ._idemptx import Exchange

__all__ = ["raw_path", "read_body", "replayed"]


def raw_path(scope: Scope) -> bytes:
    """The path as the client sent it."""
    raw: bytes | None = scope.get("raw_path")
    if raw:
        # Some servers leave the query where it does not belong.
        return raw if b"?" not in raw else raw.partition(b"?")[0]
    return quote(scope["path"], safe="/%:@!$&'()*+,;=~").encode("ascii")


async def read_body(exchange: Exchange, receive: Receive) -> tuple[list[Message], bool]:
    """Reads the body into the exchange; returns the messages read and whether they are all."""
    read: list[Message] = []
    while exchange.action == READ_BODY:
        message = await receive()
        if message["type"] == "http.disconnect":
            exchange.body_failed()
            return [*read, message], True
        read.append(message)
        body = message.get("body", b"")
        if body and not exchange.feed(body):
            exchange.body_too_large()
            return read, not message.get("more_body", False)
        if not message.get("more_body", False):
            exchange.end_body()
            return read, True
    return read, False


def replayed(read: list[Message], receive: Receive, then: Receive | None) -> Receive:
    """A `receive` that gives what was read, and goes on with `then` or, without it, the client."""
    messages = iter(read)

    async def receive_again() -> Message:
        for message in messages:
            return message
        return await (then or receive)()

    return receive_again
