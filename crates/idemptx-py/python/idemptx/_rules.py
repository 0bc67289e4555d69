"""Builds an engine's rules from an application's parameters."""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ._idemptx import Rules

__all__ = ["METHODS", "asks_a_probe", "check_flag", "check_function", "check_plain", "make_rules"]


def make_rules(
    *,
    profile: str,
    policy: Mapping[str, Any] | None,
    key_ttl: float | None,
    required: bool | None,
    wait_timeout: float | None,
    validate_signature: bool | None,
    signature_headers: Sequence[str] | str | None,
    scope: Callable[..., Any] | Mapping[str, Any] | str | None,
    methods: Sequence[str] | None = None,
    namespace: str = "",
    has_probe: bool | None = None,
) -> Rules:
    """The profile, the policy laid over it, and the parameters over both.

    # Errors

    `TypeError` or `ValueError` with what to change.
    """
    if policy is not None and not isinstance(policy, Mapping):
        message = f"policy is a mapping of names and values, not {type(policy).__name__}"
        raise TypeError(message)
    for name, text in (("profile", profile), ("namespace", namespace)):
        if not isinstance(text, str):
            message = f"{name} is a text, not {text!r}"
            raise TypeError(message)
    overlay: dict[str, Any] = dict(policy or {})
    if methods is not None:
        allowed = overlay.get("methods", methods)
        shared = [it for it in methods if it in allowed]
        # What is no list of methods is left to the policy, which says what to write.
        if shared and not isinstance(allowed, str):
            overlay["methods"] = shared
        elif not shared and all(it == str(it).upper() for it in allowed):
            message = f"{', '.join(methods)} is not among the policy's methods: nothing would match"
            raise ValueError(message)
    if required is not None:
        overlay["required"] = check_flag("required", required)
    if wait_timeout is not None:
        overlay["wait_ms"] = _millis("wait_timeout", wait_timeout)
    if key_ttl is not None:
        _retain(overlay, _millis("key_ttl", key_ttl))
    if overlay.get("on_large_body") == "stream":
        message = "on_large_body cannot be stream here: bodies are read before they are claimed"
        raise ValueError(message)
    if validate_signature is not None and not check_flag("validate_signature", validate_signature):
        overlay["fingerprint"] = False
    elif signature_headers is not None:
        overlay["fingerprint"] = _with_headers(overlay.get("fingerprint"), signature_headers)
    if scope is not None:
        # Named so that the profile has its choice; a function takes its place.
        overlay["scope"] = "shared" if callable(scope) else scope
    rules = Rules(profile, _as_json(overlay), namespace)
    asks_probe = asks_a_probe(rules)
    if has_probe is False and asks_probe:
        message = 'on_orphan "probe" asks the function `probe`: give one, or choose another value'
        raise ValueError(message)
    if has_probe and not asks_probe:
        message = 'probe is never asked: set policy={"on_orphan": "probe"}, or leave it out'
        raise ValueError(message)
    return rules.with_custom_scope() if callable(scope) else rules


def check_flag(name: str, value: Any) -> bool:
    """Returns a flag; raises `TypeError` for what is true or false only by accident, as "no"."""
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    message = f"{name} is True or False, not {value!r}"
    raise TypeError(message)


def check_function(name: str, function: Any) -> None:
    """Raises `TypeError` for what cannot be called."""
    if function is not None and not callable(function):
        message = f"{name} is a function, not {function!r}"
        raise TypeError(message)


def check_plain(name: str, function: Any) -> None:
    """Raises `TypeError` for what cannot be called, or only awaited: its answer would be lost."""
    check_function(name, function)
    if function is None:
        return
    inner = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inner.func
    if inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(
        getattr(inner, "__call__", None)  # noqa: B004
    ):
        message = f"{name} is not awaited: make it a plain function, without `async`"
        raise TypeError(message)


def asks_a_probe(rules: Rules) -> bool:
    """True if orphans are left to the application's probe."""
    found: bool = json.loads(rules.to_json())["on_orphan"] == "probe"
    return found


def _retain(overlay: dict[str, Any], retain_ms: int) -> None:
    if retain_ms == 0:
        message = "key_ttl is zero: nothing would be kept; it is in seconds"
        raise ValueError(message)
    overlay["retain_ms"] = retain_ms
    if retain_ms < LEASE_MS:
        overlay.setdefault("lease_ms", max(retain_ms, LEASE_MS_MIN))


def _with_headers(fingerprint: Any, headers: Sequence[str] | str) -> Any:
    if isinstance(headers, str) and headers != "all":
        message = f'signature_headers is a list of names or "all", not {headers!r}'
        raise ValueError(message)
    if fingerprint is False:
        message = "signature_headers needs a fingerprint, which the policy turns off"
        raise ValueError(message)
    base = dict(fingerprint) if isinstance(fingerprint, Mapping) else {}
    return {**base, "headers": headers if headers == "all" else list(headers)}


def _millis(name: str, seconds: float) -> int:
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not math.isfinite(seconds) or seconds < 0:
        message = f"{name} is a number of seconds, not {seconds!r}"
        raise ValueError(message)
    return round(seconds * 1000)


def _as_json(overlay: Mapping[str, Any]) -> str:
    if callable(overlay.get("scope")):
        message = "a function is no part of a policy: give it as the parameter `scope`"
        raise TypeError(message)
    try:
        return json.dumps(overlay)
    except (TypeError, ValueError) as error:
        message = f"the policy has a value that JSON does not have: {error}"
        raise ValueError(message) from None


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
"""The methods of routes; a decorator covers them all."""

LEASE_MS = 15_000
LEASE_MS_MIN = 100
