"""A blocking connection to Redis, for the lease renewer's thread."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

from ._idemptx import PENDING, UNAVAILABLE, Channel, Layout, RedisReplyError

if TYPE_CHECKING:
    from ._address import Address
    from ._idemptx import Step

__all__ = ["BlockingConnection", "handshake_commands"]


class BlockingConnection:
    """Performs one step after the other; opened when first needed, and again when lost."""

    def __init__(self, address: Address, layout: Layout) -> None:
        self._address = address
        self._layout = layout
        self._socket: socket.socket | None = None
        self._channel = Channel(layout)
        self._turn = threading.Lock()

    def perform(self, step: Step) -> None:
        """Leaves a verdict in the step."""
        with self._turn:
            failure: Exception | None = None
            # A connection that has idled for long may be gone: the second try has a new one.
            for _ in range(TRIES_MAX):
                try:
                    self._take(step)
                except (OSError, ValueError, RedisReplyError) as error:
                    failure = error
                    self._close()
                    step.reset()
                else:
                    return
            step.fail(UNAVAILABLE, f"redis at {self._address.name}: {failure}")

    def close(self) -> None:
        """Closes the connection."""
        with self._turn:
            self._close()

    def _take(self, step: Step) -> None:
        if self._socket is None:
            self._socket = self._connected()
        self._channel.perform(step, _DetachedFuture())
        while step.verdict == PENDING:
            self._transfer(self._socket)
        if self._channel.is_demoted:
            self._close()  # The next one may lead to the new primary.

    def _connected(self) -> socket.socket:
        address = self._address
        self._channel = Channel(self._layout)
        if address.path is not None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(TIMEOUT)
            connection.connect(address.path)
        else:
            connection = socket.create_connection((address.host, address.port), TIMEOUT)
        try:
            if address.tls is not None:
                connection = address.tls.wrap_socket(connection, server_hostname=address.host)
            for words in handshake_commands(address):
                answer = _BlockingFuture()
                self._channel.command(words, answer)
                while not answer.done():
                    self._transfer(connection)
                answer.check()
        except BaseException:
            connection.close()
            raise
        return connection

    def _transfer(self, connection: socket.socket) -> None:
        output = self._channel.take_output()
        if output:
            connection.sendall(output)
            return
        data = connection.recv(RECEIVE_MAX)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._channel.feed(data)

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _DetachedFuture:
    """A future without a waiter."""

    def done(self) -> bool:
        return False

    def set_result(self, result: object) -> None:
        """Does nothing: the step has the verdict."""


class _BlockingFuture:
    """A future, where the caller reads the connection itself."""

    def __init__(self) -> None:
        self._done = False
        self._error: BaseException | None = None

    def done(self) -> bool:
        return self._done

    def set_result(self, _result: object) -> None:
        self._done = True

    def set_exception(self, error: BaseException) -> None:
        self._done, self._error = True, error

    def check(self) -> None:
        if self._error is not None:
            raise self._error


def handshake_commands(address: Address) -> list[list[bytes]]:
    """Returns the commands that a new connection sends first."""
    commands = []
    # As redis-py does: an empty password, which settings often have for none, is one only with a
    # user, who may have none.
    if address.username or address.password:
        credentials = [address.username] if address.username else []
        commands.append([b"AUTH", *map(_as_sent, [*credentials, address.password or b""])])
    if address.database:
        commands.append([b"SELECT", str(address.database).encode()])
    return commands


def _as_sent(word: str | bytes) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()


TIMEOUT = 1.0
TRIES_MAX = 2
RECEIVE_MAX = 64 * 1024
