"""The journal of executions, which can be counted in it across processes and kills."""

from __future__ import annotations

import asyncio
import os
import time


class Journal:
    """An append-only file of one line an event, which several processes may share."""

    def __init__(self, path: str) -> None:
        """Opens the file, or makes it; OSError if it cannot be."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_DSYNC, 0o644)

    async def record(self, event: str, method: str, path: str, key: str) -> None:
        """Writes one line, in one piece and through to the disk."""
        now = time.time_ns() // 1_000_000
        line = f"{now} {os.getpid()} {event} {method} {path} {key}\n".encode()
        # A disk that is busy must not hold up the other requests, nor the heartbeats.
        written = await asyncio.to_thread(os.write, self._file, line)
        if written != len(line):
            message = "an execution that is not counted must not go on"
            raise OSError(message)
