"""From the flags to the end of the process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

import uvicorn

from target_fastapi.flags import Flags
from target_fastapi.journal import Journal
from target_fastapi.protect import unprotected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from target_fastapi.protect import Door


def start(door: Door, arguments: Sequence[str]) -> int:
    """Runs the application as its flags say until SIGTERM, and returns the exit status."""
    flags = Flags.parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        journal = Journal(flags.journal) if flags.journal else None
        listener = _bound(flags.listen)
    except OSError as error:
        return _failed(error, FAILURE)
    try:
        app = (unprotected if flags.unprotected else door)(flags, journal)
    except (TypeError, ValueError) as error:
        return _failed(error, USAGE)
    # The server hands the signal on when it has drained; that is not a failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # A client that reads slowly on a busy machine must not find its connection closed as idle.
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_keep_alive=KEEP_ALIVE)
    Server(config, drain_max=flags.policy.get("drain_ms", DRAIN_MS) / 1000).run([listener])
    return 0


class Server(uvicorn.Server):
    """A server that says where it listens, and that ends in time."""

    def __init__(self, config: uvicorn.Config, drain_max: float) -> None:
        """Ends at most `drain_max` seconds after it was asked to, even while requests run."""
        super().__init__(config)
        self._drain_max = drain_max

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Prints on stdout where it listens, once it does."""
        await super().startup(sockets)
        for listener in sockets or []:
            host, port, *_ = listener.getsockname()
            shown = f"[{host}]" if listener.family == socket.AF_INET6 else host
            print(f"listening on http://{shown}:{port}", flush=True)  # noqa: T201

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finishes what runs, clients present or gone, for as long as that may take."""
        asyncio.get_running_loop().call_later(self._drain_max, _cut_off)
        await super().shutdown(sockets)


def _bound(address: tuple[str, int]) -> socket.socket:
    family, kind, protocol, _, resolved = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(resolved)
    return listener


def _cut_off() -> NoReturn:
    logging.warning("some handlers have not ended in time; their claims will lapse")  # noqa: LOG015
    os._exit(0)


def _failed(error: Exception, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)  # noqa: T201
    return status


KEEP_ALIVE = 75
"""The seconds after which an idle connection is closed; uvicorn's own are 5."""
FAILURE = 1
USAGE = 2
"""What argparse ends with, too."""
DRAIN_MS = 30_000
