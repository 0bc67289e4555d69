#!/usr/bin/env python3
"""Checks the wording rules of CONTRIBUTING.md.

Doc comments open with a verb or a noun phrase, a short list of words is banned from doc comments
and documents, no command of a guide or an example has a fixed key, and no two public types or source files of one crate share a name.
"""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

BANNED = re.compile(
    r"\b(what becomes of|whoever|somebody|nobody|everybody|anew|lonely|vanish\w*|at hand|under way|the papers)\b",
    re.IGNORECASE,
)
OPENING = re.compile(r"(What|Who|Whose|Whoever|Whatever|How|Where|Whether|Why|When|Which)\b")
# The second guide that is followed on one store would be refused: the key is that of the first.
FIXED_KEY = re.compile(r"""(?:-H ["']Idempotency-Key: |Idempotency-Key["']: ["']|--key ["']?)[\w-]""")
PUBLIC_TYPE = re.compile(r"^\s*pub (?:struct|enum|trait|type|union) (\w+)", re.MULTILINE)
# Names that a module tree or a framework prescribes.
SHARED_FILES = {"__init__.py", "build.rs", "lib.rs", "main.rs", "mod.rs", "tests.rs"}
# Type names that a trait prescribes for its associated types.
SHARED_TYPES = {"Data", "Err", "Error", "Future", "Output", "Response"}


def main():
    names = subprocess.check_output(["git", "ls-files", "-z"], text=True).split("\0")
    paths = [path for path in map(Path, filter(None, names)) if path.exists()]
    faults = [fault for path in paths for fault in wording(path)]
    faults += [fault for path in paths for fault in fixed_keys(path)]
    faults += [f"{crate}: {what} {name} stands in {' and '.join(places)}" for crate, what, name, places in twice(paths)]
    if faults:
        sys.exit("\n".join(faults))


def wording(path):
    """Yields the faults of one file's doc comments or prose."""
    for number, text, opens in prose(path):
        if found := BANNED.search(text):
            yield f"{path}:{number}: say it in plainer words than `{found[0]}`"
        if opens and OPENING.match(text):
            yield f"{path}:{number}: open with a verb or a noun phrase, not `{text.split()[0]}`"


def fixed_keys(path):
    """Yields the commands and programs of a guide, or of an example, that have a fixed key."""
    is_guide = path.suffix == ".md" and path.parts[:2] in {("docs", "guides"), ("docs", "get-started")}
    is_example = path.parts[0] == "examples" and "test" not in str(path)
    if is_guide or is_example or path.name == "README.md":
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if FIXED_KEY.search(line):
                yield f"{path}:{number}: let the reader draw a key, as with `KEY=$(uuidgen)`"


def prose(path):
    """Yields line number, text, and whether the text opens a doc comment."""
    if path.suffix == ".rs":
        yield from rust_docs(path)
    elif path.suffix == ".py":
        yield from docstrings(path)
    elif path.suffix == ".md" and path.name != "CHANGELOG.md":
        text = re.sub(r"```.*?```", lambda code: "\n" * code[0].count("\n"), path.read_text(), flags=re.DOTALL)
        for number, line in enumerate(text.splitlines(), 1):
            yield number, line, False


def rust_docs(path):
    inside, code = False, False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        found = re.match(r"\s*//[/!] ?(.*)", line)
        text = found[1] if found else ""
        if text.startswith("```"):
            code = not code
        elif found and not code:
            yield number, text, not inside
        inside, code = bool(found), code and bool(found)


def docstrings(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if docstring := ast.get_docstring(node):
            first = node.body[0].lineno
            for offset, line in enumerate(docstring.splitlines()):
                yield first + offset, line, offset == 0


def twice(paths):
    """Yields the public types and the file names that stand in one crate several times."""
    types, files = defaultdict(list), defaultdict(list)
    for path in paths:
        if path.parts[0] != "crates" or "src" not in path.parts or path.suffix != ".rs":
            continue
        crate = path.parts[1]
        if path.name not in SHARED_FILES:
            files[crate, path.name].append(str(path))
        for name in set(PUBLIC_TYPE.findall(path.read_text())) - SHARED_TYPES:
            types[crate, name].append(str(path))
    for what, found in (("the type", types), ("the file name", files)):
        for (crate, name), places in found.items():
            if len(places) > 1:
                yield crate, what, name, places


if __name__ == "__main__":
    main()
