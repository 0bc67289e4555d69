"""The patterns by which the middleware chooses requests, and the paths that they have in common."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from ._rules import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Pattern", "Template", "overlap", "parse_pattern", "template_of"]


class Pattern(NamedTuple):
    """The methods and paths of a route; `text` is what the application wrote."""

    text: str
    methods: tuple[str, ...] | None
    path: re.Pattern[str]
    template: Template
    sample: str

    def fits(self, method: str, path: str) -> bool:
        """True for a request of this route."""
        return (self.methods is None or method in self.methods) and bool(self.path.match(path))

    def covers(self, other: Pattern) -> bool:
        """True if every request of the other pattern is one of this one, too."""
        mine, theirs = self.methods, other.methods
        is_method = mine is None or (theirs is not None and set(theirs) <= set(mine))
        return is_method and bool(self.path.match(other.sample))


def parse_pattern(text: str) -> Pattern:
    """Reads `"/path"`, `"METHOD /path"` or `"METHOD,METHOD /path"`.

    Raises `ValueError` with what to write.
    """
    if not isinstance(text, str):
        message = f'a route is a text such as "POST /orders", not {text!r}'
        raise TypeError(message)
    methods, _, path = text.strip().rpartition(" ")
    named = tuple(method.strip().upper() for method in methods.split(",") if method.strip())
    unknown = [method for method in named if method not in METHODS]
    if not path.startswith("/") or unknown:
        message = (
            f'{text!r} is no route: write "/path", "METHOD /path" or "METHOD,METHOD /path", '
            "with {name} for a segment and a final * for whatever follows"
        )
        raise ValueError(message)
    plain = unquote(re.split(r"[?#]", path)[0])
    if path != plain:
        message = f"{text!r} is compared with decoded paths without query: did you mean {plain!r}?"
        raise ValueError(message)
    rest = path.endswith("*")
    if "*" in path[:-1]:
        right = re.sub(r"(?<=/)\*+(?=/)", "{name}", path.rstrip("*") + ("*" if rest else ""))
        advice = f": did you mean {right!r}?" if right.count("*") == rest else ""
        message = f"{text!r} has a * that is not at its end{advice}"
        raise ValueError(message)
    if NAMED.sub("", path).count("{") + NAMED.sub("", path).count("}"):
        message = f"{text!r} has a brace that is no {{name}} of a whole part of the path"
        raise ValueError(message)
    template = tuple(_parts(path[:-1] if rest else path, lambda kind: kind == "path"))
    if rest:
        template = (*template, ANYTHING)
    regex = "".join(it if it in WILD else re.escape(it) for it in template)
    # A segment is a character that no path has, and whatever follows has empty segments, too: what
    # matches the sample matches every path of this pattern.
    sample = "".join(WILD.get(it, it) for it in template)
    return Pattern(text, named or None, re.compile(regex + r"\Z", re.DOTALL), template, sample)


Template = tuple[str, ...]
"""The paths of a route: characters, `SEGMENT` and `ANYTHING`."""


def template_of(path: str) -> Template:
    """Reads a path as Starlette's routes have it, such as `/orders/{id:int}`."""
    # A kind that an application has registered may span several segments, as `path` does.
    return tuple(_parts(path, lambda kind: kind not in KINDS_OF_SEGMENTS))


def _parts(path: str, spans: Callable[[str], bool]) -> Iterator[str]:
    end = 0
    for name in NAMED.finditer(path):
        yield from path[end : name.start()]
        yield ANYTHING if spans(name[0][1:-1].partition(":")[2]) else SEGMENT
        end = name.end()
    yield from path[end:]


def overlap(one: Template, other: Template) -> bool:
    """True if there is a path that both have."""
    left, right = _states(one), _states(other)
    waiting, seen = [(0, 0)], {(0, 0)}
    while waiting:
        i, j = waiting.pop()
        if i == len(left) and j == len(right):
            return True
        for state in _next(left, i, right, j):
            if state not in seen:
                seen.add(state)
                waiting.append(state)
    return False


def _states(template: Template) -> list[tuple[str, bool]]:
    """The parts, each with whether it takes any number of characters; a segment takes one first."""
    states: list[tuple[str, bool]] = []
    for part in template:
        if part == SEGMENT:
            states.append((part, False))
        states.append((part, part in WILD))
    return states


def _next(
    left: list[tuple[str, bool]], i: int, right: list[tuple[str, bool]], j: int
) -> Iterator[tuple[int, int]]:
    """The positions that follow without a character, or with one that both take."""
    if i < len(left) and left[i][1]:
        yield i + 1, j
    if j < len(right) and right[j][1]:
        yield i, j + 1
    if i < len(left) and j < len(right) and _share(left[i][0], right[j][0]):
        yield i if left[i][1] else i + 1, j if right[j][1] else j + 1


def _share(one: str, other: str) -> bool:
    """True if there is a character that both take."""
    return one == other or bool({one, other} & WILD.keys() and {one, other} != {SEGMENT, "/"})


NAMED = re.compile(r"\{[^{}/]*\}")
SEGMENT = "[^/]+"
ANYTHING = ".*"
WILD = {SEGMENT: "\0", ANYTHING: "//\0//"}
"""Parts of templates that are no characters, each with an example."""
KINDS_OF_SEGMENTS = frozenset({"", "str", "int", "float", "uuid"})
