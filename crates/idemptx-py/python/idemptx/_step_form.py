"""The form in which the result of a handler's step is kept."""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["StepForm"]


class StepForm:
    """Converts a result to JSON, and back to the type that the step's function promises."""

    __slots__ = ("_adapter",)

    def __init__(self, call: Callable[[], Any], returns: Any) -> None:
        """Raises `TypeError` if `returns`, or the function's annotation, cannot be kept as JSON."""
        kind = returns if returns is not None else _returned_by(call)
        is_typed = kind is not None and kind is not Any and not isinstance(kind, typing.TypeVar)
        self._adapter: Any = _adapter_of(kind) if is_typed else None

    def dump(self, result: object) -> bytes:
        """The JSON of a result: the effect has happened, so as much as possible is taken."""
        if self._adapter is not None:
            try:
                text: bytes = self._adapter.dump_json(result, warnings=False)
            except (TypeError, ValueError):
                pass  # It is no such thing; it may be kept all the same.
            else:
                return text
        # As FastAPI would, which takes models, dates and the like.
        return json.dumps(
            result, separators=(",", ":"), allow_nan=False, default=_jsonable
        ).encode()

    def load(self, text: bytes) -> Any:
        """The result of a step, from its JSON."""
        if self._adapter is None:
            return json.loads(text)
        try:
            return self._adapter.validate_json(text)
        except ValueError as error:
            message = f"{PROMISED}: {_without_input(error)}"
            raise TypeError(message) from None


def _returned_by(call: Callable[[], Any]) -> Any:
    """The type that a function's annotation promises; `None` without one that can be read."""
    function: Any = call
    while isinstance(function, functools.partial):
        function = function.func
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        return None
    try:
        kind = typing.get_type_hints(function, include_extras=True).get("return")
    except Exception:  # noqa: BLE001 - a name that is there for type checkers alone
        return None
    if inspect.iscoroutinefunction(function):
        return kind
    origin = typing.get_origin(kind)
    is_awaited = isinstance(origin, type) and issubclass(origin, Awaitable)
    return typing.get_args(kind)[-1] if is_awaited and typing.get_args(kind) else kind


@functools.lru_cache(maxsize=256)
def _adapter_of(kind: Any) -> Any:
    try:
        from pydantic import PydanticUserError, TypeAdapter  # noqa: PLC0415 - only where needed
    except ImportError:  # Pydantic 1, or none
        return None
    try:
        adapter: Any
        try:
            adapter = TypeAdapter(kind, config=WHOLE)  # type: ignore[arg-type]
        except PydanticUserError:  # a model, whose configuration is its own
            adapter = TypeAdapter(kind)
        adapter.json_schema(mode="serialization")
    except Exception as error:  # noqa: BLE001 - Pydantic has many for this
        name = getattr(kind, "__name__", kind)
        message = f"a step's result is made of what JSON has, and {name} is not: {error}"
        raise TypeError(message) from None
    return adapter


def _without_input(error: Any) -> str:
    """Returns Pydantic's findings without the values, which may be secrets: they are logged."""
    found = error.errors(include_url=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, it['loc'])) or 'it'}: {it['msg']}" for it in found)


def _jsonable(value: object) -> Any:
    from fastapi.encoders import jsonable_encoder  # noqa: PLC0415 - only where it is needed

    try:
        return jsonable_encoder(value)
    except (TypeError, ValueError):
        message = (
            f"a step's result is made of what JSON has, not of {type(value).__name__}: return the "
            "part of it that is needed later"
        )
        raise TypeError(message) from None


WHOLE = {"ser_json_bytes": "base64", "val_json_bytes": "base64", "ser_json_inf_nan": "strings"}
"""Has every value of these types kept as it is, where JSON has no such value."""
PROMISED = "the step's result is kept, but is not what its function promises"
