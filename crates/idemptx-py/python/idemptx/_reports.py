"""Logs what an operator should know, once or at a limited rate."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from ._idemptx import Step

__all__ = ["report", "report_concern", "report_renewal", "report_setting"]

logger = logging.getLogger("idemptx")


def report(step: Step) -> None:
    """Logs a step without a verdict, at a limited rate."""
    _Reports.steps.log(logging.ERROR, f"store unavailable: {step.failure or 'no reason is known'}")


def report_renewal(step: Step) -> None:
    """Logs a lease that could not be renewed, at a limited rate; called from any thread."""
    _Reports.renewals.log(logging.WARNING, f"a lease could not be renewed: {step.failure}")


def report_concern(concern: str) -> None:
    """Logs what an operator should know of a request or a response, once in this process."""
    _warn_once(CONCERNS[concern])


def report_setting(text: str) -> None:
    """Logs a setting that is valid and will hardly do what it is meant to, once in this process."""
    _warn_once(text)


def _warn_once(text: str) -> None:
    if text not in _Reports.warned:
        _Reports.warned.add(text)
        logger.warning("%s", text)


class _Limited:
    """Logs lines of one kind at a limited rate."""

    def __init__(self) -> None:
        self._at = float("-inf")
        self._suppressed = 0

    def log(self, level: int, line: str) -> None:
        now = time.monotonic()
        if now - self._at < REPORT_EVERY:
            self._suppressed += 1
            return
        more = f" ({self._suppressed} more suppressed)" if self._suppressed else ""
        self._at, self._suppressed = now, 0
        logger.log(level, "%s%s", line, more)


class _Reports:
    steps = _Limited()
    renewals = _Limited()
    warned: ClassVar[set[str]] = set()


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
