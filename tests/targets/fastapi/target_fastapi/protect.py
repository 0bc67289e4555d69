"""Everything that the application has to do with idemptx: its two front doors."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from idemptx import IdempotencyMiddleware, drain, idempotent
from idemptx.backend import from_url

from target_fastapi.application import application

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fastapi import FastAPI

    from target_fastapi.application import Handler
    from target_fastapi.flags import Flags
    from target_fastapi.journal import Journal

    Door = Callable[[Flags, Journal | None], FastAPI]


def decorator(flags: Flags, journal: Journal | None) -> FastAPI:
    """The application with the decorator on each of its handlers."""
    protect = idempotent(
        from_url(flags.store, prefix=PREFIX),
        profile=flags.profile,
        # As in every target; the decorator by itself requires a key.
        policy={"required": False, **flags.policy},
    )
    return application(journal, protect, _draining)


def middleware(flags: Flags, journal: Journal | None) -> FastAPI:
    """Returns the application under the middleware, which drains by itself."""
    app = unprotected(flags, journal)
    app.add_middleware(
        IdempotencyMiddleware,
        storage_backend=from_url(flags.store, prefix=PREFIX),
        profile=flags.profile,
        policy=flags.policy,
    )
    # Built now, so that what is wrong with the policy is told now.
    app.middleware_stack = app.build_middleware_stack()
    return app


def unprotected(_flags: Flags, journal: Journal | None) -> FastAPI:
    """The application alone."""
    return application(journal, _as_it_is, lifespan=None)


@asynccontextmanager
async def _draining(_app: FastAPI) -> AsyncIterator[None]:
    yield
    await drain()


def _as_it_is(handler: Handler) -> Handler:
    return handler


DOORS: dict[str, Door] = {"decorator": decorator, "middleware": middleware}
PREFIX = "idem:"
"""That of the Rust targets, so that all share their records."""
