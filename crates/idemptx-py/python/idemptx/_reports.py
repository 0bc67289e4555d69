"""Logs steps without a verdict, at a limited rate."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._idemptx import Step

__all__ = ["report"]

logger = logging.getLogger("idemptx")


def report(step: Step) -> None:
    """Logs a step without a verdict, at a limited rate."""
    _Reports.count += 1
    now = asyncio.get_running_loop().time()
    if now - _Reports.at >= REPORT_EVERY:
        logger.error(
            "the store gave no verdict (%d times since the last such line): %s",
            _Reports.count,
            step.failure or "no reason is known",
        )
        _Reports.at, _Reports.count = now, 0


class _Reports:
    at = float("-inf")
    count = 0


REPORT_EVERY = 5.0
