"""A store's guarantees in its configuration, and findings against them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._idemptx import Layout

__all__ = ["Finding", "SafetyReport", "Severity", "check_server"]


class Severity(IntEnum):
    """The severity of a finding."""

    NOTE = 0
    """Good to know."""
    WARNING = 1
    """Something could not be checked, or will cause refusals."""
    UNSAFE = 2
    """Claims can be lost or deleted, and their operations run twice."""
    FATAL = 3
    """The store cannot work."""


@dataclass(frozen=True)
class Finding:
    """A finding of a safety check."""

    severity: Severity
    text: str
    """The finding, its consequence, and the remedy."""


@dataclass(frozen=True)
class SafetyReport:
    """The result of a safety check, the gravest finding first."""

    guarantee: str
    """The store's guarantee in this configuration, in one line."""
    findings: list[Finding] = field(default_factory=list)

    @cached_property
    def is_unsafe(self) -> bool:
        """True if the store can lose or delete claims, or cannot work at all."""
        return any(finding.severity >= Severity.UNSAFE for finding in self.findings)

    @cached_property
    def is_fatal(self) -> bool:
        """True if the store cannot work."""
        return any(finding.severity == Severity.FATAL for finding in self.findings)


async def check_server(
    layout: Layout,
    ask: Callable[[list[bytes]], Awaitable[Any]],
    *,
    is_overheard: bool,
) -> SafetyReport:
    """Asks a Redis server about itself; an error reply is returned by `ask`, not raised."""
    answers = [await ask(question) for question in layout.questions()]
    allowed = [await ask(question) for question in layout.rights_questions()]
    guarantee, found = layout.evaluate(answers, allowed, is_overheard)
    return SafetyReport(guarantee, [Finding(Severity(grade), text) for grade, text in found])
