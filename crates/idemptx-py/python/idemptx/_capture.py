"""Captures an ASGI response: whole if it can be stored, otherwise streamed live."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from ._execution import OUTCOME
from ._idemptx import is_live

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Sequence

    from starlette.types import Message, Receive, Scope, Send

    from ._driver import Conclusion, Driver, Work

__all__ = ["Capture", "ClientDisconnected", "without_shortcuts"]


class ClientDisconnected(OSError):  # noqa: N818 - an end, not an error
    """Raised into a handler when the client of its live response has left."""


class Capture:
    """A captured response: the `send` of an application that runs under a key."""

    status = 0
    headers: Sequence[tuple[bytes, bytes]] = ()
    body = b""
    _live: _LiveBody | None = None
    _size = 0
    _debug: Message | None = None
    """What Starlette tells its test client of a template."""
    _for_one_client: _LiveBody | None = None
    """The body, if it is made for one client alone."""
    _concluded: asyncio.Event | None = None
    _is_over = False
    _end: asyncio.Event | None = None
    """Set once it is known how the request ends: with its client, or with the response."""

    def __init__(self, driver: Driver, work: Work) -> None:
        self._driver = driver
        # Let go of with the response: it leads back here, and a cycle lives until it is collected.
        self._work: Work | None = work
        self._chunks: list[bytes] | None = []

    async def send(self, message: Message) -> None:
        """Takes the response's messages; concludes the exchange with its last one."""
        kind = message["type"]
        if kind == "http.response.body":
            body = message.get("body", b"")
            if type(body) is not bytes:
                body = bytes(body)  # Some send views of their buffers.
            more = message.get("more_body", False)
            if self._live is not None:
                await self._live.put(body, more=more)
                if not more:
                    self._end_body()
            elif self._chunks is not None:
                await self._collect(self._chunks, body, more=more)
        elif kind == "http.response.start":
            self._take_head(message["status"], list(message.get("headers", ())))
            if is_live(self.status, self.headers):
                await self._go_live(ends_with_client=True)
        elif kind == "http.response.debug":
            self._debug = message
        # Other messages (early hints, pushes) are for this client alone and are dropped.

    async def receive(self, from_client: Receive) -> Message:
        """Receives what comes after the request's body.

        That is its end. A body made for one client alone ends with that client, all others with
        their response: a detached handler does not see its client leave, but some applications
        end only with what every server says after the response (ASGI's `http.disconnect`).
        """
        if self._for_one_client is None and not self._is_over:
            if self._end is None:
                self._end = asyncio.Event()
            await self._end.wait()
        body = self._for_one_client
        if body is None or body.is_left:
            return {"type": "http.disconnect"}
        message = await from_client()
        if message["type"] == "http.disconnect":
            body.leave()
        return message

    async def whole(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Takes a response that is known already."""
        self._take_head(status, headers)
        await self._collect([], body, more=False)

    def _take_head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.status, self.headers = status, headers
        self._driver.said = [line for line in headers if line[0].lower() == OUTCOME]

    async def _collect(self, chunks: list[bytes], body: bytes, *, more: bool) -> None:
        self._size += len(body)
        if self._size > self._driver.rules.response_bytes_max:
            await self._go_live(ends_with_client=False)
            if self._live is not None:
                for chunk in chunks:
                    await self._live.put(chunk, more=True)
                await self._live.put(body, more=more)
                if not more:
                    self._end_body()
        elif more:
            chunks.append(body)
        else:
            self._chunks = None
            self.body = b"".join([*chunks, body]) if chunks else body
            responded = self._driver.exchange.responded
            headers = self._driver.directed(self.headers)
            await self._conclude(partial(responded, self.status, headers, self.body))
            self._note_end()

    def _end_body(self) -> None:
        self._driver.body_ended(whole=True)
        self._note_end()

    def _note_end(self) -> None:
        self._is_over = True
        self._know_end()

    def _know_end(self) -> None:
        # Not before a message was taken: what hears of the end may cancel what sends it.
        if self._end is not None:
            self._end.set()

    def concluded(self) -> asyncio.Event:
        """Returns what is set once the exchange knows the response, whose body may still flow."""
        self._concluded = asyncio.Event()
        return self._concluded

    async def _conclude(self, conclusion: Conclusion) -> None:
        work, self._work = self._work, None
        assert work is not None  # noqa: S101 - there is one conclusion
        if not self._driver.hand_over(conclusion):
            await self._driver.conclude_here(conclusion, work)
        if self._concluded is not None:
            self._concluded.set()

    async def _go_live(self, *, ends_with_client: bool) -> None:
        self._chunks = None
        self._live = _LiveBody(self._driver, ends_with_client=ends_with_client)
        streamed, headers = self._driver.exchange.streamed, self._driver.directed(self.headers)
        await self._conclude(partial(streamed, self.status, headers))
        if ends_with_client:
            self._for_one_client = self._live
            self._know_end()

    async def send_to(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        """Sends the client what was captured, under the header lines as marked."""
        live = self._live
        try:
            if self._debug is not None:
                await send(self._debug)
            await send({"type": "http.response.start", "status": self.status, "headers": headers})
            if live is None:
                await send({"type": "http.response.body", "body": self.body})
            else:
                await live.send_to(send)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Lets a live body end without a reader."""
        if self._live is not None:
            self._live.leave()

    async def ended(self) -> None:
        """Ends the body when the application has returned or raised."""
        if self._live is not None:
            self._driver.body_ended(whole=False)
            await self._live.end()

    @property
    def is_live(self) -> bool:
        """True while the body is being produced."""
        return self._live is not None


class _LiveBody:
    """A body that flows from a handler to a client that may be slower, or leave."""

    def __init__(self, driver: Driver, *, ends_with_client: bool) -> None:
        self._driver = driver
        self._chunks: asyncio.Queue[tuple[bytes, bool] | None] = asyncio.Queue(LIVE_CHUNKS_MAX)
        self._left: Future[None] = driver.engine.loop.create_future()
        self._ends_with_client = ends_with_client
        self._alone_until = 0.0
        self._complete = False

    async def put(self, chunk: bytes, *, more: bool) -> None:
        if self._driver.client_left:
            self.leave()
        if not self._left.done():
            self._complete = not more
            await self._put((chunk, more))
            return
        # A body that is only too large is part of the handler's work: it is read for a limited
        # time after the client has left, so that the handler can end.
        now = self._driver.engine.loop.time()
        if self._ends_with_client or now > self._alone_until:
            raise ClientDisconnected

    async def _put(self, item: tuple[bytes, bool] | None) -> None:
        if not self._chunks.full():
            self._chunks.put_nowait(item)
            return
        putting = asyncio.ensure_future(self._chunks.put(item))
        try:
            await asyncio.wait({putting, self._left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            putting.cancel()

    async def end(self) -> None:
        """Ends the body, complete or not."""
        if not self._complete and not self._left.done():
            await self._put(None)

    async def send_to(self, send: Send) -> None:
        try:
            while (item := await self._chunks.get()) is not None:
                chunk, more = item
                if not more:
                    await self._driver.body_freed()
                await send({"type": "http.response.body", "body": chunk, "more_body": more})
                if not more:
                    return
            if self._left.done():
                return  # The application heard of it first, and ends by itself.
            # The handler ended without ending its body: so must the connection.
            await self._driver.body_freed()
            await self._driver.finished()
            message = "the response's body broke off"
            raise RuntimeError(message)
        finally:
            self.leave()

    @property
    def is_left(self) -> bool:
        """True once it is without a reader."""
        return self._left.done()

    def leave(self) -> None:
        if not self._left.done():
            self._left.set_result(None)
            self._wake_reader()
            self._alone_until = self._driver.engine.loop.time() + LEFT_ALONE_MAX

    def _wake_reader(self) -> None:
        while not self._chunks.empty():
            self._chunks.get_nowait()
        self._chunks.put_nowait(None)


def without_shortcuts(scope: Scope) -> Scope:
    """The scope without the extensions by which parts of a response would miss the capture."""
    extensions = scope.get("extensions")
    if not extensions or SHORTCUTS.isdisjoint(extensions):
        return scope
    kept = {name: value for name, value in extensions.items() if name not in SHORTCUTS}
    return {**scope, "extensions": kept}


SHORTCUTS = frozenset(
    {"http.response.pathsend", "http.response.trailers", "http.response.zerocopysend"}
)
LIVE_CHUNKS_MAX = 16
"""The number of chunks of a live body that wait for a slow client."""
LEFT_ALONE_MAX = 30.0
"""The seconds for which a body is still read after its client has left."""
