"""The in-loop transport: one multiplexed connection to Redis in the running event loop.

A connection is an `asyncio.Protocol`, and Rust only encodes and parses: TCP, TLS, unix sockets and
every event loop are served by one path.

Commands of one turn of the loop are written at once, and replies are matched in order, which
pipelines without a thread or a pool. Wake-ups use a second connection, because Redis limits the
output buffer of a subscriber far more narrowly than that of a client.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from ._idemptx import (
    ABSENT,
    INTERNAL,
    OK,
    REFUSED,
    UNAVAILABLE,
    Channel,
    Layout,
    PubSubReader,
    RedisReplyError,
    Step,
)
from ._redis_blocking import BlockingConnection, handshake_commands
from ._safety import check_server

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Awaitable, Callable, Sequence

    from ._address import Address
    from ._idemptx import Rules
    from ._safety import SafetyReport

    Calls = dict[bytes, dict[int, Callable[[], None]]]

__all__ = ["RedisAsyncioStore"]


class RedisAsyncioStore:
    """Records in Redis, over connections of one event loop."""

    def __init__(self, address: Address, layout: Layout) -> None:
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._layout = layout
        self._timeout = TIMEOUT
        self._connection: _CommandConnection | None = None
        self._connecting: Future[_CommandConnection] | None = None
        self._failure: tuple[str, int] = ("", REFUSED)
        self._failures = 0
        self._reconnect_at = 0.0
        self._renewals: BlockingConnection | None = None
        self._subscriber: _Subscriber | None = None
        self._subscribing: Future[_Subscriber] | None = None
        self._wakes: Calls = {}

    def perform(self, step: Step) -> Awaitable[None]:
        """Queues the step's command, or connects first."""
        connection = self._connection
        if connection is not None and connection.is_up:
            return connection.perform(step)
        return self._perform_connecting(step)

    def renew(self, steps: Sequence[Step]) -> None:
        """Renews over a separate blocking connection, because the loop may be blocked."""
        if self._renewals is None:
            self._renewals = BlockingConnection(self._address, self._layout)
        for step in steps:
            self._renewals.perform(step)

    async def retry(self, step: Step) -> None:
        """Repeats a step if the connection was lost, not if the server is silent."""
        connection = self._connection
        if connection is not None and connection.is_silent:
            return
        failure = step.failure
        step.reset()
        await self._perform_connecting(step)
        if step.verdict == UNAVAILABLE and not step.failure and failure:
            step.fail(UNAVAILABLE, failure)

    async def watch(self, record: bytes, wake: Callable[[], None]) -> object:
        """Subscribes, then marks the claim as awaited, so that its end is published."""
        watching = _Wake(self._wakes, record, wake)
        try:
            await self._subscribe()
        except (OSError, RedisReplyError, asyncio.TimeoutError):
            return None
        step = Step.watch(record)
        await self.perform(step)
        if step.verdict == ABSENT:
            # There is no claim now, so no end will be published: look again at once.
            wake()
        elif step.verdict != OK:
            return None
        return watching

    def expect(self, rules: Rules) -> None:
        """The shortest time-out of all rules counts for the connection that they share."""
        self._timeout = min(self._timeout, rules.claim_timeout)

    async def check(self) -> SafetyReport:
        """Asks the server for the settings by which it may lose records."""
        try:
            connection = await self._connected()
        except (OSError, RedisReplyError, asyncio.TimeoutError) as error:
            raise ConnectionError(self._failure[0]) from error

        async def ask(question: list[bytes]) -> Any:
            try:
                return await connection.command(*question)
            except RedisReplyError as error:
                return error

        return await check_server(self._layout, ask, is_overheard=self._address.is_overheard)

    async def close(self) -> None:
        """Closes both connections."""
        connection, subscriber, renewals = self._connection, self._subscriber, self._renewals
        self._connection = self._subscriber = self._renewals = None
        for end in (connection, subscriber):
            if end is not None:
                await end.close()
        if renewals is not None:
            renewals.close()

    async def _perform_connecting(self, step: Step) -> None:
        try:
            connection = await self._connected()
        except (OSError, RedisReplyError, asyncio.TimeoutError):
            failure, verdict = self._failure
            step.fail(verdict, failure)
            return
        await connection.perform(step)

    async def _connected(self) -> _CommandConnection:
        """Returns the connection, opened if needed; one attempt at a time, shared by all."""
        connection = self._connection
        if connection is not None and connection.is_up:
            return connection
        if self._connecting is None:
            if self._loop.time() < self._reconnect_at:
                raise ConnectionError(self._failure[0])
            # A task, so that cancelling the first caller does not fail the others.
            self._connecting = self._loop.create_task(self._connect())
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> _CommandConnection:
        name = self._address.name
        try:
            connection = await asyncio.wait_for(_CommandConnection.open(self), CONNECT_TIMEOUT)
        except (OSError, RedisReplyError, asyncio.TimeoutError) as error:
            is_refusal = isinstance(error, RedisReplyError)
            reason = str(error) or self._lateness()
            if reason.startswith(REFUSALS_OF_USERS):
                reason = f"the user, the password or the permissions were refused: {reason}"
            self._failure = (
                f"redis at {name}: {reason}",
                INTERNAL if is_refusal else REFUSED,
            )
            pause = min(RECONNECT_PAUSE * 2 ** min(self._failures, 10), RECONNECT_PAUSE_MAX)
            self._reconnect_at = self._loop.time() + pause
            self._failures += 1
            raise
        else:
            self._failures = 0
            self._connection = connection
            return connection
        finally:
            self._connecting = None

    def _lateness(self) -> str:
        if self._address.tls is None:
            return f"no connection within {CONNECT_TIMEOUT} s"
        return (
            f"no TLS handshake within {CONNECT_TIMEOUT} s: if this port speaks no TLS, write "
            "redis:// instead of rediss://"
        )

    async def _subscribe(self) -> None:
        if self._subscriber is not None and self._subscriber.is_up:
            return
        if self._subscribing is None:
            self._subscribing = self._loop.create_task(self._open_subscriber())
        await asyncio.shield(self._subscribing)

    async def _open_subscriber(self) -> _Subscriber:
        try:
            self._subscriber = subscriber = await asyncio.wait_for(
                _Subscriber.open(self), CONNECT_TIMEOUT
            )
            return subscriber
        finally:
            self._subscribing = None

    # For the connections

    @property
    def address(self) -> Address:
        """The server of the connections."""
        return self._address

    @property
    def layout(self) -> Layout:
        """The layout of records."""
        return self._layout

    @property
    def timeout(self) -> float:
        """The time limit of a reply, in seconds."""
        return self._timeout

    def claim_ended(self, payload: bytes) -> None:
        """Wakes the waiters of a claim that has ended."""
        record = Layout.id_from_text(payload)
        if record is not None:
            for wake in list(self._wakes.get(record, {}).values()):
                wake()

    def demoted(self) -> None:
        """Pauses before the next connection: the address leads to a new primary in a while."""
        self._failure = (f"redis at {self._address.name}: {DEMOTED}", REFUSED)
        self._reconnect_at = self._loop.time() + DEMOTED_PAUSE
        if self._subscriber is not None:
            self._subscriber.abort()

    def subscription_lost(self) -> None:
        """Wakes all waiters, because a lost subscription may have missed a message."""
        for wakes in list(self._wakes.values()):
            for wake in list(wakes.values()):
                wake()


class _Wake:
    """A waiter for the end of a claim, until dropped."""

    __slots__ = ("_calls", "_record")

    def __init__(self, calls: Calls, record: bytes, call: Callable[[], None]) -> None:
        self._calls = calls
        self._record = record
        calls.setdefault(record, {})[id(self)] = call

    def __del__(self) -> None:
        calls = self._calls.get(self._record)
        if calls is not None:
            calls.pop(id(self), None)
            if not calls:
                del self._calls[self._record]


async def _open(address: Address, protocol: asyncio.Protocol) -> None:
    loop = asyncio.get_running_loop()
    if address.path is not None:
        await loop.create_unix_connection(lambda: protocol, address.path)
    else:
        transport, _ = await loop.create_connection(
            lambda: protocol,
            address.host,
            address.port,
            ssl=address.tls,
            server_hostname=address.host if address.tls is not None else None,
        )
        _keep_alive(transport)


def _keep_alive(transport: asyncio.BaseTransport) -> None:
    """Has the system notice a lost peer, and routers on the way not forget an idle connection."""
    shown = transport.get_extra_info("socket")
    if shown is None:
        return
    # uvloop shows one whose options cannot be set: a duplicate is the same connection.
    with (
        suppress(OSError),
        socket.fromfd(shown.fileno(), socket.AF_INET, socket.SOCK_STREAM) as duplicate,
    ):
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, seconds in KEEPALIVE.items():
            option = getattr(socket, name, None)
            if option is not None:
                duplicate.setsockopt(socket.IPPROTO_TCP, option, seconds)


class _CommandConnection(asyncio.Protocol):
    """A connection for commands."""

    def __init__(self, store: RedisAsyncioStore) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._channel = Channel(store.layout)
        self._transport: asyncio.Transport | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._closed: Future[None] = self._loop.create_future()
        self.is_up = False
        self.is_silent = False

    @classmethod
    async def open(cls, store: RedisAsyncioStore) -> _CommandConnection:
        connection = cls(store)
        await _open(store.address, connection)
        try:
            for words in handshake_commands(store.address):
                await connection.command(*words)
            asked = store.layout.moment()
            seconds, micros = await connection.command(b"TIME")
        except BaseException:
            connection.abort("the greeting failed")
            raise
        store.layout.learn_time(int(seconds), int(micros), asked)
        return connection

    def perform(self, step: Step) -> Future[None]:
        future: Future[None] = self._loop.create_future()
        if self._channel.perform(step, future):
            self._loop.call_soon(self._flush)
            if self._watchdog is None:
                self._watch_over()
        return future

    async def command(self, *words: bytes) -> Any:
        future: Future[Any] = self._loop.create_future()
        if not self.is_up:
            raise ConnectionError(self._lost_reason)
        if self._channel.command(words, future):
            self._loop.call_soon(self._flush)
        if self._watchdog is None:
            self._watch_over()
        return await future

    async def close(self) -> None:
        self.abort("the connection was closed")
        await self._closed

    def abort(self, reason: str) -> None:
        self._lose(reason)
        if self._transport is not None:
            self._transport.abort()
        elif not self._closed.done():
            self._closed.set_result(None)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.is_up = True

    def data_received(self, data: bytes) -> None:
        try:
            if self._channel.feed(data):
                self._flush()
            if self._channel.is_demoted:
                self._store.demoted()
                self.abort(DEMOTED)
        except ValueError as error:
            self.abort(f"it does not speak the Redis protocol: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(str(exc) if exc else "the server closed the connection")
        if not self._closed.done():
            self._closed.set_result(None)

    # Its inside

    _lost_reason = "it is not open"

    def _flush(self) -> None:
        output = self._channel.take_output()
        if output and self.is_up and self._transport is not None:
            self._transport.write(output)

    def _lose(self, reason: str) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        self._lost_reason = f"redis at {self._store.address.name}: {reason}"
        self.is_up = False
        self._channel.lose(self._lost_reason)

    def _watch_over(self) -> None:
        every = self._store.timeout / WATCHDOG_TURNS
        self._watchdog = self._loop.call_later(every, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._watchdog = None
        timeout = self._store.timeout
        if self._channel.waited() >= timeout:
            # Replies come in order: without this one there are no later ones either.
            self.is_silent = True
            self.abort(f"no answer within {timeout} s")
        elif self._channel.waiting:
            self._watch_over()


class _Subscriber(asyncio.Protocol):
    """A connection that listens for the ends of claims."""

    def __init__(self, store: RedisAsyncioStore) -> None:
        self._store = store
        self._messages = PubSubReader()
        self._transport: asyncio.Transport | None = None
        self._subscribed: Future[None] = asyncio.get_running_loop().create_future()
        self._closed: Future[None] = asyncio.get_running_loop().create_future()
        self._to_skip = 0
        self.is_up = False

    @classmethod
    async def open(cls, store: RedisAsyncioStore) -> _Subscriber:
        subscriber = cls(store)
        await _open(store.address, subscriber)
        try:
            await subscriber.handshake()
        except BaseException:
            subscriber.abort()
            raise
        return subscriber

    async def handshake(self) -> None:
        for words in [
            *handshake_commands(self._store.address),
            [b"SUBSCRIBE", self._store.layout.channel],
        ]:
            parts = [b"*%d\r\n" % len(words)]
            parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
            assert self._transport is not None  # noqa: S101 - it has just been opened
            self._transport.write(b"".join(parts))
        await self._subscribed

    async def close(self) -> None:
        self.abort()
        await self._closed

    def abort(self) -> None:
        self.is_up = False
        if self._transport is not None:
            self._transport.abort()
        elif not self._closed.done():
            self._closed.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            messages = self._messages.feed(data)
        except (ValueError, RedisReplyError) as error:
            if not self._subscribed.done():
                self._subscribed.set_exception(error)
            self.abort()
            return
        for channel, payload in messages:
            if channel != self._store.layout.channel:
                continue
            if payload:
                self._store.claim_ended(payload)
            elif not self._subscribed.done():
                self.is_up = True
                self._subscribed.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_up = False
        if not self._subscribed.done():
            self._subscribed.set_exception(exc or ConnectionError("the server hung up"))
            with suppress(Exception):
                self._subscribed.exception()
        if not self._closed.done():
            self._closed.set_result(None)
        self._store.subscription_lost()


TIMEOUT = 5.0
"""The time limit of a reply in seconds, unless a policy has a shorter one."""
CONNECT_TIMEOUT = 1.0
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""The seconds without traffic before the first probe and between probes, and their number."""
DEMOTED = "the server is a replica, which takes no writes"
DEMOTED_PAUSE = 0.25
# The codes of answers that mean the user; older servers have no code for a wrong password.
REFUSALS_OF_USERS = ("NOAUTH", "NOPERM", "WRONGPASS", "ERR invalid password", "ERR AUTH")
RECONNECT_PAUSE = 0.025
RECONNECT_PAUSE_MAX = 1.0
WATCHDOG_TURNS = 4
