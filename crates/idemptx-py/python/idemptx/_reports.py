"""Logs what an operator should know, once or at a limited rate."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._idemptx import Step

__all__ = ["report", "report_placeholder"]

logger = logging.getLogger("idemptx")


def report(step: Step) -> None:
    """Logs a step without a verdict, at a limited rate."""
    now = asyncio.get_running_loop().time()
    if now - _Reports.at < REPORT_EVERY:
        _Reports.suppressed += 1
        return
    more = f" ({_Reports.suppressed} more suppressed)" if _Reports.suppressed else ""
    logger.error("store unavailable: %s%s", step.failure or "no reason is known", more)
    _Reports.at, _Reports.suppressed = now, 0


def report_placeholder() -> None:
    """Logs once in this process that a client failed to fill in its key."""
    if not _Reports.placeholder:
        _Reports.placeholder = True
        logger.warning(PLACEHOLDER_KEY)


class _Reports:
    at = float("-inf")
    suppressed = 0
    placeholder = False


REPORT_EVERY = 5.0
PLACEHOLDER_KEY = (
    "a client sends a placeholder as its key, such as `undefined` or `null`: every client with "
    'this fault sends the same key; policy={"on_placeholder_key": "refuse"} refuses it'
)
