"""Applications drawn by a seed, each with and without protection.

A plan is drawn once and made into an application as often as needed: the unprotected one is the
oracle of the protected one.
"""

# Annotations are read at run time by FastAPI:
# ruff: noqa: TC003

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from idemptx import IdempotencyMiddleware, idempotent
from idemptx.backend import InMemoryBackend

SCOPES: list[str | None] = (
    [None, "function", "request"] if "scope" in inspect.signature(Depends).parameters else [None]
)
STATUSES = [200, 201, 202, 303, 402, 404, 409, 410, 422, 429, 500, 503]
AWAITS_MAX = 3


class HandledError(Exception):
    """An exception for which the application has a handler."""


class UnhandledError(Exception):
    """An exception for which the application has none."""


def raising(draw: random.Random) -> Callable[[], Exception]:
    status = draw.choice(STATUSES[4:])
    return draw.choice(
        [lambda: HTTPException(status, "no"), lambda: HandledError("no"), UnhandledError]
    )


@dataclass
class DependencyPlan:
    """A dependency: entered, and left if it yields."""

    name: str
    yields: bool
    scope: str | None
    awaits: int
    fails_at: str
    """`enter`, `exit` or nothing."""
    error: Callable[[], Exception]
    mails: bool

    @classmethod
    def drawn(cls, draw: random.Random, number: int) -> DependencyPlan:
        yields = draw.random() < 0.7
        return cls(
            name=f"dependency {number}",
            yields=yields,
            scope=draw.choice(SCOPES) if yields else None,
            awaits=draw.randint(0, AWAITS_MAX),
            fails_at=draw.choices(["", "enter", "exit"], [8, 1, 1])[0],
            error=raising(draw),
            mails=draw.random() < 0.2,
        )


@dataclass
class Plan:
    """An application with one route."""

    seed: int
    layer: str
    is_async: bool
    awaits: int
    returns: str
    status: int
    error: Callable[[], Exception] | None
    mails: int
    mail_fails: bool
    mount: str
    root_path: str
    is_eager: bool
    dependencies: list[DependencyPlan] = field(default_factory=list)

    @classmethod
    def drawn(cls, seed: int) -> Plan:
        draw = random.Random(seed)
        return cls(
            seed=seed,
            layer=draw.choice(["decorator", "middleware"]),
            is_async=draw.random() < 0.8,
            awaits=draw.randint(0, AWAITS_MAX),
            returns=draw.choice(["dict", "response", "stream"]),
            status=draw.choice(STATUSES),
            error=raising(draw) if draw.random() < 0.3 else None,
            mails=draw.choice([0, 0, 1, 2]),
            mail_fails=draw.random() < 0.1,
            mount=draw.choice(["", "", "/inner"]),
            root_path=draw.choice(["", "", "/proxy"]),
            is_eager=draw.random() < 0.3,
            dependencies=[DependencyPlan.drawn(draw, n) for n in range(draw.randint(0, 3))],
        )

    def fails_at(self, point: str) -> bool:
        """True if a dependency fails when it is entered, or at its exit."""
        return any(it.fails_at == point for it in self.dependencies)

    @property
    def path(self) -> str:
        return f"{self.root_path}{self.mount}/orders"


class Application:
    """An application as a plan has it, and a log of what happens in it."""

    def __init__(self, plan: Plan, *, is_protected: bool) -> None:
        self.log: list[str] = []
        self.running = 0
        self.at_once = 0
        self.handled = 0
        self._plan = plan
        inner = FastAPI()
        handler: Any = self._handler()
        if is_protected and plan.layer == "decorator":
            handler = idempotent(InMemoryBackend())(handler)
        dependencies = [self._dependency(it) for it in plan.dependencies]
        inner.post("/orders", dependencies=dependencies)(handler)
        inner.add_exception_handler(HandledError, self._answer)
        if is_protected and plan.layer == "middleware":
            inner.add_middleware(IdempotencyMiddleware, storage_backend=InMemoryBackend())
        self.asgi = inner
        if plan.mount:
            self.asgi = FastAPI()
            self.asgi.mount(plan.mount, inner)

    async def _answer(self, _request: Request, error: Exception) -> Response:
        return JSONResponse({"handled": str(error)}, 418)

    def _dependency(self, plan: DependencyPlan) -> Any:
        async def enter(tasks: BackgroundTasks) -> None:
            for _ in range(plan.awaits):
                await asyncio.sleep(0)
            if plan.fails_at == "enter":
                self.log.append(f"{plan.name} fails")
                raise plan.error()
            if plan.mails:
                tasks.add_task(self._mail, plan.name)

        async def plain(tasks: BackgroundTasks) -> None:
            await enter(tasks)

        async def yielding(tasks: BackgroundTasks) -> AsyncIterator[None]:
            await enter(tasks)
            self.log.append(f"{plan.name} entered")
            try:
                yield
            except Exception as error:
                self.log.append(f"{plan.name} sees {type(error).__name__}")
                raise
            for _ in range(plan.awaits):
                await asyncio.sleep(0)
            if plan.fails_at == "exit":
                self.log.append(f"{plan.name} fails at its end")
                raise plan.error()
            self.log.append(f"{plan.name} left")

        scope = {} if plan.scope is None else {"scope": plan.scope}
        return Depends(yielding if plan.yields else plain, **scope)

    def _handler(self) -> Any:
        plan = self._plan

        def begin(tasks: BackgroundTasks) -> None:
            self.handled += 1
            self.log.append("handler")
            for number in range(plan.mails):
                tasks.add_task(self._mail, f"mail {number}")

        def end() -> Any:
            if plan.error is not None:
                raise plan.error()
            if plan.returns == "dict":
                return {"n": self.handled}
            content = f'{{"n":{self.handled}}}'.encode()
            if plan.returns == "response":
                return Response(content, plan.status, {"X-N": str(self.handled)})
            return StreamingResponse(iter([content[:3], content[3:]]), plan.status)

        async def handle(tasks: BackgroundTasks) -> Any:
            begin(tasks)
            self.running += 1
            self.at_once = max(self.at_once, self.running)
            try:
                for _ in range(plan.awaits):
                    await asyncio.sleep(0)
                return end()
            finally:
                self.running -= 1

        def handle_in_thread(tasks: BackgroundTasks) -> Any:
            begin(tasks)
            return end()

        return handle if plan.is_async else handle_in_thread

    async def _mail(self, name: str) -> None:
        await asyncio.sleep(0)
        if self._plan.mail_fails:
            raise UnhandledError
        self.log.append(f"sent: {name}")
