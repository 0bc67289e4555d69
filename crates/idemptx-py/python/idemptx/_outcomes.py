"""Outcomes of requests, for an application's hooks and for counters of this process."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ._rules import check_plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._idemptx import Exchange

    Hook = Callable[["RequestOutcome"], object]

__all__ = ["Observer", "Outcome", "RequestOutcome", "outcome_counts"]

logger = logging.getLogger("idemptx")

Outcome: TypeAlias = Literal["executed", "unstored", "replayed", "refused", "fenced", "passed"]


@dataclass(frozen=True)
class RequestOutcome:
    """The outcome of a request that carried a key, or was refused for want of one."""

    outcome: Outcome
    """As in the gateway's metrics: `executed` with a stored response, `unstored` without,
    `replayed`, `refused`, `fenced` where the handler ran and another owner had taken the key over
    meanwhile, or `passed` without protection."""
    reason: str
    """The problem's code of a refusal, such as `key-reused` or `in-progress`, or `handler-failed`
    for a handler that raised; `replayed` or such a code for `fenced`; empty otherwise."""
    method: str
    path: str
    """The path as the client sent it, percent-encoded."""
    attempt: int
    """The number of the execution; 0 if the handler did not run under a claim."""
    error: BaseException | None
    """The exception that the handler raised and the application does not handle."""


class Observer:
    """Counts outcomes, and hands them to the application's hook."""

    __slots__ = ("_hook",)

    def __init__(self, hook: Hook | None) -> None:
        check_plain("on_outcome", hook)
        self._hook = hook

    def note(
        self,
        exchange: Exchange,
        operation: tuple[str, bytes],
        error: BaseException | None = None,
    ) -> None:
        """Records an exchange that has its answer; an exception of the hook is logged."""
        ended = exchange.outcome
        with _LOCK:
            _COUNTS[ended] += 1
        if self._hook is None:
            return
        outcome, reason = ended
        method, path = operation
        try:
            self._hook(
                RequestOutcome(
                    outcome, reason, method, path.decode("latin-1"), _attempt_of(exchange), error
                )
            )
        except Exception:
            logger.exception("the hook for outcomes failed")


def outcome_counts() -> dict[tuple[Outcome, str], int]:
    """The number of requests by outcome and reason since this process began."""
    with _LOCK:
        return dict(_COUNTS)


def _attempt_of(exchange: Exchange) -> int:
    try:
        return exchange.attempt
    except RuntimeError:  # nothing was claimed
        return 0


_LOCK = threading.Lock()
_COUNTS: Counter[tuple[Outcome, str]] = Counter()
