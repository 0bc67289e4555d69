"""Orphans, as the application's probe sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._idemptx import Exchange

__all__ = ["Orphan"]


class Orphan:
    """An operation whose execution was lost, for the application's probe."""

    __slots__ = ("attempt", "derive", "key")

    def __init__(self, exchange: Exchange) -> None:
        self.key = exchange.key
        self.attempt = exchange.orphan_attempt
        self.derive: Callable[[str], str] = exchange.derive
        """Returns the key that the lost execution derived for a label, to find its effect."""
