"""Many duplicates at the same moment, from a client that costs next to nothing."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

ANSWER_SECONDS_MAX = 60


class Answer(NamedTuple):
    """The response to one request."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def send_duplicates(
    port: int, path: str, keys: list[str], *, duplicates: int, at_once: int
) -> dict[str, list[Answer]]:
    """Posts `duplicates` of each key at the same moment, for `at_once` keys at a time."""
    waiting = iter(keys)
    answers: dict[str, list[Answer]] = {}

    async def work() -> None:
        lines = [await _CommandConnection.open(port) for _ in range(duplicates)]
        try:
            for key in waiting:
                sent = [line.post(path, key) for line in lines]
                answers[key] = list(await asyncio.gather(*sent))
        finally:
            for line in lines:
                await line.close()

    await asyncio.gather(*(work() for _ in range(at_once)))
    return answers


class _CommandConnection:
    """A connection that is kept open from one request to the next."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> _CommandConnection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, path: str, key: str) -> Answer:
        head = f"POST {path} HTTP/1.1\r\nHost: test\r\nIdempotency-Key: {key}\r\n"
        self._writer.write(f"{head}Content-Length: 0\r\n\r\n".encode())
        return await asyncio.wait_for(self._read(), ANSWER_SECONDS_MAX)

    async def _read(self) -> Answer:
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines[1:] if line]
        headers = {name.lower(): value for name, value in pairs}
        body = await self._reader.readexactly(int(headers["content-length"]))
        return Answer(int(lines[0].split()[1]), headers, body)

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()
