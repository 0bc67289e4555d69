"""Describes protected routes in an application's own OpenAPI document.

The additions are those of the gateway: a header parameter, a problem response for each status of
a refusal, and the header of replays.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, TypeAlias

from ._application_routes import DEPTH_MAX, mounts_of, with_attribute

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._idemptx import Rules

__all__ = ["annotate_application", "annotate_operation", "annotate_routes_of"]

RulesFor: TypeAlias = "Callable[[str, str], Rules | None]"


def annotate_operation(operation: dict[str, Any], rules: Rules) -> None:
    """Adds what the rules make of an operation, and leaves alone what it has already."""
    policy = json.loads(rules.to_json())
    _add_key_parameter(operation, policy)
    responses = operation.setdefault("responses", {})
    for status, response in responses.items():
        if status[:1] in {"2", "3"} and "$ref" not in response:
            response.setdefault("headers", {}).setdefault("Idempotent-Replayed", REPLAYED)
    is_flat = policy["problem"]["format"] == "flat"
    media = "application/json" if is_flat else "application/problem+json"
    schema = FLAT if is_flat else PROBLEM
    for status, codes in sorted(_refusals(policy).items()):
        described = f"Refused: {', '.join(codes)}."
        response = responses.setdefault(str(status), {"description": described})
        if "$ref" not in response:
            content = response.setdefault("content", {})
            content.setdefault(media, {"schema": schema, "x-idempotency-codes": codes})


def annotate_application(application: Any, rules_for: RulesFor, depth: int = 0) -> None:
    """Wraps `openapi` of an application, and of those that are mounted in it, once.

    FastAPI calls it for its document. `rules_for` returns the rules of a method and a path
    template.
    """
    for prefix, inner in mounts_of(application) if depth < DEPTH_MAX else ():
        annotate_application(inner, _below(prefix, rules_for), depth + 1)
    documented = with_attribute(application, "openapi")
    original = getattr(documented, "openapi", None)
    if documented is None or original is None or hasattr(original, ANNOTATED):
        return

    @functools.wraps(original)
    def openapi() -> Any:
        document = original()
        # FastAPI keeps its document; one that is made anew has no mark.
        if isinstance(document, dict) and not document.get(MARK):
            document[MARK] = True
            for path, item in document.get("paths", {}).items():
                for method, operation in item.items():
                    rules = rules_for(method.upper(), path) if method in METHODS else None
                    if rules is not None:
                        annotate_operation(operation, rules)
        return document

    setattr(openapi, ANNOTATED, True)
    documented.openapi = openapi


def _below(prefix: str, rules_for: RulesFor) -> RulesFor:
    return lambda method, path: rules_for(method, prefix + path)


def annotate_routes_of(attribute: str) -> None:
    """Has FastAPI describe routes whose endpoint has its rules in an attribute of this name.

    The decorator sees no route, and a route asks nothing of its endpoint but its signature, which
    cannot say that a header is required and yet leave its absence to the decorator. Does nothing
    where FastAPI is missing, or is another than this knows.
    """
    try:
        from fastapi.openapi import utils  # noqa: PLC0415 - only where FastAPI is
    except ImportError:
        return
    original = getattr(utils, "get_openapi_path", None)
    if original is None or hasattr(original, ANNOTATED):
        return

    @functools.wraps(original)
    def get_openapi_path(**arguments: Any) -> Any:
        result = original(**arguments)
        rules = getattr(getattr(arguments.get("route"), "endpoint", None), attribute, None)
        if rules is not None and result:
            for method, operation in result[0].items():
                if method in METHODS:
                    annotate_operation(operation, rules)
        return result

    setattr(get_openapi_path, ANNOTATED, True)
    utils.get_openapi_path = get_openapi_path


def _add_key_parameter(operation: dict[str, Any], policy: dict[str, Any]) -> None:
    names = policy["header_name"]
    name = names if isinstance(names, str) else names[0]
    parameters = operation.setdefault("parameters", [])
    for parameter in parameters:
        is_header = parameter.get("in") == "header"
        if is_header and parameter.get("name", "").lower() == name.lower():
            parameter["required"] = bool(parameter.get("required") or policy["required"])
            return
    parameters.append(
        {
            "name": "-".join(word.capitalize() for word in name.split("-")),
            "in": "header",
            "required": policy["required"],
            "description": KEY,
            # Two more for the quotes.
            "schema": {
                "type": "string",
                "minLength": 1,
                "maxLength": policy["key_bytes_max"] + 2,
            },
        }
    )


def _refusals(policy: dict[str, Any]) -> dict[int, list[str]]:
    """The codes of the refusals that are possible, by their status."""
    scope = policy["scope"]
    quarantines = policy["on_orphan"] != "reexecute" or policy["on_panic"] == "quarantine"
    possible = [
        ("missing-key", policy["missing_status"], policy["required"]),
        ("invalid-key", 400, True),
        ("scope-unresolved", 400, isinstance(scope, dict) and "header" in scope),
        ("body-too-large", 413, policy["on_large_body"] != "skip"),
        ("in-progress", policy["in_flight_status"], True),
        ("outcome-unknown", 409, quarantines),
        ("result-unavailable", 409, True),
        ("key-expired", 409, policy["key_retain_ms"] > policy["retain_ms"]),
        ("key-reused", policy["mismatch_status"], True),
        ("too-many-keys", 429, policy["new_keys_per_minute_max"] is not None),
        ("store-unavailable", 503, policy["on_store_error"] != "fail_open"),
    ]
    by_status: dict[int, list[str]] = {}
    for code, status, can_happen in possible:
        if can_happen:
            by_status.setdefault(status, []).append(code)
    return by_status


METHODS = frozenset({"get", "put", "post", "delete", "options", "head", "patch", "trace"})
MARK = "x-idempotency"
ANNOTATED = "__idemptx_annotated__"
KEY = "A value that is unique to this operation; a retry with the same key gets its answer again."
REPLAYED = {
    "description": "On a retry that gets the first answer again.",
    "schema": {"type": "boolean"},
}
PROBLEM = {
    "type": "object",
    "description": "A refusal, after RFC 9457.",
    "required": ["type", "title", "status", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "retryable": {"type": "boolean"},
        "safe_new_key": {"type": "boolean"},
    },
}
FLAT = {
    "type": "object",
    "required": ["type", "code", "message"],
    "properties": {name: {"type": "string"} for name in ("type", "code", "message")},
}
