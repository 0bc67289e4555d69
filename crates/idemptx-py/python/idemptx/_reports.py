"""Logs what an operator should know, once or at a limited rate."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from ._idemptx import Step

__all__ = ["report", "report_concern"]

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


def report_concern(concern: str) -> None:
    """Logs what an operator should know of a request or a response, once in this process."""
    if concern not in _Reports.concerns:
        _Reports.concerns.add(concern)
        logger.warning(CONCERNS[concern])


class _Reports:
    at = float("-inf")
    suppressed = 0
    concerns: ClassVar[set[str]] = set()


REPORT_EVERY = 5.0
CONCERNS = {
    "placeholder": (
        "a client sends a placeholder as its key, such as `undefined` or `null`: every client with "
        'this fault sends the same key; policy={"on_placeholder_key": "refuse"} refuses it'
    ),
    "session": (
        "a request with a key has cookies, and none of the headers to which keys are bound: if its "
        'session is in a cookie, make that the scope, as policy={"scope": {"cookie": NAME}}'
    ),
    "outcome": (
        "a handler's Idempotency-Outcome is none of `store`, `release` and `unknown`: it counts as "
        "unknown"
    ),
}
