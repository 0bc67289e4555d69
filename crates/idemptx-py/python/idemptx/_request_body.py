"""Feeds a request's body to an exchange, also if the application has read it before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

from ._idemptx import ANSWER, PASS
from ._request import read_body

if TYPE_CHECKING:
    from starlette.requests import Request

    from ._idemptx import Exchange, MemoryStore

__all__ = ["feed"]


async def feed(exchange: Exchange, request: Request, memory: MemoryStore | None) -> None:
    """Feeds the body to the exchange, also if it has been read before.

    A result that is in `memory` answers the exchange at once.
    """
    state = vars(request)
    known: bytes | None = state.get("_body")
    if known is not None:
        exchange.read(known, False, memory)
        return
    form = state.get("_form")
    if form is not None:
        await _feed_form(exchange, form)
        return
    if state.get("_stream_consumed", False):
        exchange.body_failed()  # Something before us took it, and kept nothing.
        return
    read, action = await read_body(exchange, request.receive, memory)
    more = read[-1].get("more_body", False)
    if len(read) == 1 and not more:
        request._body = read[0].get("body", b"")  # noqa: SLF001
        return
    chunks = [message.get("body", b"") for message in read]
    while more and action == ANSWER and exchange.answer == PASS:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    request._body = b"".join(chunks)  # noqa: SLF001


async def _feed_form(exchange: Exchange, form: Any) -> None:
    """Feeds a form that FastAPI has parsed: its fields in order, without the boundaries."""
    for name, value in form.multi_items():
        texts = [name]
        if isinstance(value, str):
            texts.append(value)
        else:
            texts += [value.filename or "", value.content_type or ""]
        # A client chooses the charset of its form, and some have halves of surrogate pairs.
        parts = [text.encode(errors="surrogatepass") for text in texts]
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


FILE_CHUNK = 64 * 1024
