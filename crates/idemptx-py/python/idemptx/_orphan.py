"""Orphans, as the application's probe sees them."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._engine import Engine
    from ._idemptx import Exchange

    Probe = Callable[["Orphan"], Any]

__all__ = ["Orphan", "ask_probe"]

logger = logging.getLogger("idemptx")


class Orphan:
    """An operation whose execution was lost, for the application's probe."""

    __slots__ = ("attempt", "derive", "key")

    def __init__(self, exchange: Exchange) -> None:
        self.key = exchange.key
        self.attempt = exchange.orphan_attempt
        self.derive: Callable[[str], str] = exchange.derive
        """Returns the key that the lost execution derived for a label, to find its effect."""


async def ask_probe(engine: Engine, exchange: Exchange, probe: Probe) -> Any:
    """Asks the application about an orphan; all requests for it share one call.

    Returns what the probe does, and None where it fails or takes too long.
    """
    record = exchange.id
    asking = engine.probes.get(record)
    if asking is None:
        asking = engine.spawn(_ask(probe, Orphan(exchange)))
        engine.probes[record] = asking
        asking.add_done_callback(lambda _: engine.probes.pop(record, None))
    return await asyncio.shield(asking)


async def _ask(probe: Probe, orphan: Orphan) -> Any:
    try:
        found = probe(orphan)
        if inspect.isawaitable(found):
            found = await asyncio.wait_for(found, PROBE_TIMEOUT)
        if not (found is None or found is False or _is_whole(found)):
            message = (
                "a probe returns None, False, or a Response whose body is known, such as a "
                f"JSONResponse, not {type(found).__name__}"
            )
            raise TypeError(message)  # noqa: TRY301 - one place for everything that fails
    except Exception:
        logger.exception("the probe failed; nothing is known of the orphan")
        return None
    return found


def _is_whole(found: Any) -> bool:
    return isinstance(found, Response) and isinstance(
        getattr(found, "body", None), bytes | memoryview
    )


PROBE_TIMEOUT = 10.0
