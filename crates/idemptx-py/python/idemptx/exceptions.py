"""Exceptions that the decorator raises if the application handles them.

Without a handler the client gets a problem document.


They are `HTTPException`s as well, so that an application without a specific handler answers
properly. `IdempotencyException` comes first among their bases, so that a handler for it takes
precedence over one for all HTTP exceptions.
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
    """Base class of all exceptions of this package."""


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
    """Raised while another request with the key is being executed."""

    STATUS = 409
    CODE = "in-progress"


class RequestRefusedException(_Refused):
    """A refusal for another reason, which is in `code`."""


class LeaseLostException(IdempotencyException):
    """Raised when another execution took the operation over: roll back and leave."""


class RecoveryException(IdempotencyException):
    """A handler's step has no result to go on with, and did not run, or ran and is not kept.

    The store gave no answer, or an earlier attempt ran the step and could not keep its result.
    """


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
