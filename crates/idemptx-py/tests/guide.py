"""The guide and the README as programs: their sections, run as a reader would."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from servers import ReservedPort

ROOT = Path(__file__).parents[3]
GUIDE = ROOT / "docs/guides/fastapi.md"
README = ROOT / "README.md"

Names = dict[str, Any]
Send = Callable[..., Awaitable[httpx.Response]]


class Block(NamedTuple):
    language: str
    text: str


def sections(document: Path) -> dict[str, list[Block]]:
    """The fenced blocks under each heading of the second level."""
    parts = re.split(r"^## (.+)$", document.read_text(), flags=re.MULTILINE)
    fence = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return {
        heading: [Block(*found) for found in fence.findall(text)]
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }


GUIDE_SECTIONS = sections(GUIDE)
WITH_PYTHON = [
    heading
    for heading, blocks in GUIDE_SECTIONS.items()
    if any(block.language == "python" for block in blocks)
]
QUICK_START = "Quick start"
READERS_POSTGRES = "postgres://app:secret@127.0.0.1:5432/shop"


def names_after(heading: str, redis_url: str, postgres_url: str = READERS_POSTGRES) -> Names:
    """The names that a reader has who follows the quick start, then one section."""
    names: Names = {"__name__": "main"}
    for part in dict.fromkeys([QUICK_START, heading]):
        for block in GUIDE_SECTIONS[part]:
            if block.language == "python":
                text = here(block.text, redis_url).replace(READERS_POSTGRES, postgres_url)
                code = compile(text, f"{GUIDE.name}, {part}", "exec", dont_inherit=True)
                exec(code, names)  # the documents are ours
    return names


def with_counter(redis_url: str, **parameters: Any) -> Names:
    """The quick start with another route, protected with these parameters."""
    names = names_after(QUICK_START, redis_url)
    names["app"].post("/count")(names["idempotent"](names["backend"], **parameters)(counter()))
    return names


def counter() -> Callable[[], Awaitable[int]]:
    executions = []

    async def count() -> int:
        executions.append(None)
        return len(executions)

    return count


def converse(names: Names, talk: Callable[[Send], Awaitable[None]]) -> None:
    """Lets a client talk to the application of a section."""

    async def conversation() -> None:
        transport = httpx.ASGITransport(names["app"])
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:

            async def send(
                path: str,
                key: str | None = None,
                headers: dict[str, str] | None = None,
                content: str = '{"item":"tea"}',
            ) -> httpx.Response:
                sent = {"Content-Type": "application/json", **(headers or {})}
                if key is not None:
                    sent["Idempotency-Key"] = key
                return await client.post(path, content=content, headers=sent)

            await talk(send)
        await names["backend"].aclose()

    asyncio.run(asyncio.wait_for(conversation(), PATIENCE_SECONDS))


def here(text: str, redis_url: str) -> str:
    """The text with the fixture's Redis in the place of the reader's."""
    host, port = redis_url.removeprefix("redis://").split("/")[0].split(":")
    text = text.replace("redis://127.0.0.1:6379/0", redis_url)
    return text.replace('host="127.0.0.1", port=6379', f'host="{host}", port={port}')


def follow(blocks: list[Block], redis_url: str, directory: Path) -> None:
    """Writes the program to main.py, and does what the console shows."""
    (program,) = [block.text for block in blocks if block.language == "python"]
    (directory / "main.py").write_text(here(program, redis_url))
    steps = "".join(block.text for block in blocks if block.language == "console")
    server = None
    key = ""
    reserved = ReservedPort()
    port = reserved.number
    try:
        for step in re.split(r"^\$ ", steps, flags=re.MULTILINE)[1:]:
            command, _, expected = step.partition("\n")
            words = shlex.split(command.replace("8000", str(port)))
            match words:
                case ["KEY=$(uuidgen)"]:
                    key = str(uuid.uuid4())
                case ["pip", "install", *packages]:
                    assert all(map(importlib.metadata.version, packages))
                case ["uvicorn", *_]:
                    server = start([sys.executable, "-m", *words], directory, port)
                case ["curl", *_]:
                    assert server
                    words = [word.replace("$KEY", key) for word in words]
                    compare(ask(words), expected)
                case _:
                    pytest.fail(f"nothing runs {command!r}")
        assert server
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE_SECONDS) in (0, -signal.SIGTERM)
    finally:
        if server and server.poll() is None:
            server.kill()
            server.wait()
        reserved.release()


def ask(words: list[str]) -> str:
    """Returns what a command shows, and repeats it as clients do while the store is too slow."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        done = subprocess.run(words, capture_output=True, check=True, timeout=PATIENCE_SECONDS)
        answer = done.stdout.decode()
        if not answer.startswith("HTTP/1.1 503") or time.monotonic() > until:
            return answer


def compare(answer: str, expected: str) -> None:
    """Holds each line of a document to what was answered; it may leave lines and members out."""
    head, _, body = answer.replace("\r\n", "\n").partition("\n\n")
    lines = [line.lower() for line in head.splitlines()]
    for line in filter(None, expected.splitlines()):
        if line.startswith("HTTP/"):
            # The words after the status are the server's own.
            assert lines[0].split()[:2] == line.lower().split()[:2], answer
        elif line.startswith("{"):
            whole = "…" not in line
            shown = json.loads(line.replace(", …", ""))
            answered = json.loads(body)
            assert shown == {name: answered[name] for name in (answered if whole else shown)}
        else:
            assert line.lower() in lines, answer


def start(words: list[str], directory: Path, port: int) -> subprocess.Popen[bytes]:
    server = subprocess.Popen(words, cwd=directory)
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.05)
    server.kill()
    raise AssertionError(f"{words} did not start: {server.wait()}")


PATIENCE_SECONDS = 60
