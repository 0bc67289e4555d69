"""One execution of a handler."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from idemptx import current_execution

if TYPE_CHECKING:
    from starlette.requests import Request

    from target_fastapi.journal import Journal

Answer = TypeVar("Answer")


@dataclass
class Executions:
    """The state that the executions of one process share."""

    journal: Journal | None
    last: str = f"{os.getpid()}-0"
    flaky: Counter[str] = field(default_factory=Counter)
    """The number of executions of `/flaky` with each key."""
    _count: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def next(self) -> str:
        """Returns an identifier that no other execution has."""
        self.last = f"{os.getpid()}-{next(self._count)}"
        return self.last

    @staticmethod
    def of(request: Request) -> Executions:
        """Returns the executions of the application that the request came to."""
        executions = request.app.state.executions
        assert isinstance(executions, Executions)  # noqa: S101 - put there by `application`
        return executions


@dataclass(frozen=True)
class Run:
    """A running execution."""

    n: str
    """The identifier that no other execution has."""
    key: str
    """The request's key, `-` without one."""
    _journal: Journal | None
    _method: str
    _path: str

    @classmethod
    async def begin(cls, request: Request) -> Run:
        """Journals the start, and sleeps as long as the request asks."""
        pause = int(request.query_params.get("ms", "0"))
        executions = Executions.of(request)
        run = cls(
            n=executions.next(),
            key=_key(request),
            _journal=executions.journal,
            _method=request.method,
            _path=request.url.path,
        )
        await run._record("start")
        await asyncio.sleep(pause / 1000)
        return run

    @property
    def serial(self) -> dict[str, str]:
        """The body of most answers."""
        return {"n": self.n}

    async def end(self, answer: Answer) -> Answer:
        """Journals the end, for the answer is whole."""
        await self._record("end")
        return answer

    async def _record(self, event: str) -> None:
        if self._journal is not None:
            await self._journal.record(event, self._method, self._path, self.key)


def _key(request: Request) -> str:
    """Returns the key from the front door, or else from the request."""
    execution = current_execution()
    if execution is not None:
        return execution.key
    lines = request.headers.getlist("idempotency-key")
    if len(lines) == 1:
        if quoted := QUOTED.fullmatch(lines[0]):
            return ESCAPED.sub(r"\1", quoted[1])
        if BARE.fullmatch(lines[0]):
            return lines[0]
    return "-"


# RFC 8941, section 3.3.3: a string, here with or without parameters; or bare text.
QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])+)"(?: *;.*)?')
ESCAPED = re.compile(r'\\(["\\])')
BARE = re.compile(r"[!#-+\--:<-\[\]-~]+")
