"""What the decorator raises where the application handles it; elsewhere a client gets a problem.

They are `HTTPException`s as well, so that an application without a handler of its own answers
properly, and `IdempotencyException` comes first among their bases, so that one that has a handler
for it is asked before the handler of all HTTP exceptions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

try:
    from fastapi import HTTPException
except ImportError:  # Starlette alone
    from starlette.exceptions import HTTPException  # type: ignore[assignment]

if TYPE_CHECKING:
    from ._idemptx import Refusal

__all__ = [
    "ConflictRequestException",
    "IdempotencyConflictException",
    "IdempotencyException",
    "LeaseLostException",
    "MissingKeyException",
    "RecoveryException",
    "RequestInProgressException",
    "RequestRefusedException",
    "for_refusal",
]


class IdempotencyException(Exception):  # noqa: N818 - the original's names
    """Base class of all that is raised here."""


class _Refused(IdempotencyException, HTTPException):
    """A request that was not executed."""

    STATUS: ClassVar[int] = 409
    CODE: ClassVar[str] = ""

    def __init__(self, message: str = "") -> None:
        """Takes the text alone, as the original's exceptions did."""
        Exception.__init__(self, message)
        self.detail = message
        self.status_code = self.STATUS
        self.headers: dict[str, str] | None = None
        self.code = self.CODE
        """The problem's stable name, such as `key-reused`."""

    def __str__(self) -> str:
        """The bare text: `HTTPException` would put the status before it."""
        return str(self.detail)


class MissingKeyException(_Refused):
    """The request has no key, and one is required."""

    STATUS = 400
    CODE = "missing-key"


class IdempotencyConflictException(_Refused):
    """Base class of conflicts between requests with the same key."""


class ConflictRequestException(IdempotencyConflictException):
    """The key was used for another request."""

    STATUS = 422
    CODE = "key-reused"


class RequestInProgressException(IdempotencyConflictException):
    """Another request with the key is being executed."""

    STATUS = 409
    CODE = "in-progress"


class RequestRefusedException(_Refused):
    """Refused for another reason; `code` says which."""


class LeaseLostException(IdempotencyException):
    """Somebody took the operation over while the handler ran; what it did must not count."""


class RecoveryException(IdempotencyException):
    """The store gave no answer about a handler's step: its result is not known, or not kept."""


def for_refusal(refusal: Refusal) -> IdempotencyException:
    """The exception that stands for a refusal."""
    kind, text = _KINDS.get(refusal.code, (RequestRefusedException, refusal.detail))
    exception = kind(text)
    exception.code = refusal.code
    exception.status_code = refusal.status
    exception.headers = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in refusal.headers
        if name not in _OF_THE_DOCUMENT
    }
    return exception


_KINDS: dict[str, tuple[type[_Refused], str]] = {
    "missing-key": (MissingKeyException, "Missing Idempotency-Key"),
    "key-reused": (
        ConflictRequestException,
        "Request payload does not match previous Idempotency-Key usage.",
    ),
    "in-progress": (
        RequestInProgressException,
        "Request is being processed. Try again later.",
    ),
}

_OF_THE_DOCUMENT = frozenset({b"content-type", b"content-length"})
