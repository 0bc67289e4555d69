"""The package as a whole: its version, and how its modules import each other."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import idemptx

ROOT = Path(idemptx.__file__).parent


def imports(path, package, modules):
    """The modules of the package that a module imports, for type checkers or at run time."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            parts = parts[: len(parts) - node.level + 1] if node.level else []
            origin = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{origin}.{alias.name}"
                yield from (it for it in (name, origin) if it in modules)


def with_packages(name):
    """A module and the packages that are imported before it."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def test_the_package_states_the_version_of_its_crate():
    manifest = Path(__file__).parents[3] / "Cargo.toml"
    assert f'\nversion = "{idemptx.__version__}"\n' in manifest.read_text(encoding="utf-8")


def test_modules_import_each_other_without_circles():
    modules = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        modules[name] = (path, name if is_package else name.rpartition(".")[0])
    graph = {}
    for name, (path, package) in modules.items():
        found = {it for one in imports(path, package, modules) for it in with_packages(one)}
        # A member is imported while its package is: that is no circle of theirs.
        graph[name] = {it for it in found - {name} if not name.startswith(f"{it}.")}
    assert len(graph) > 20
    TopologicalSorter(graph).prepare()  # raises CycleError
