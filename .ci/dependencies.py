#!/usr/bin/env python3
"""Holds docs/internals/dependencies.md to the manifests: one row for each direct dependency."""

import json
import re
import subprocess
import sys
from pathlib import Path

DOCUMENT = Path("docs/internals/dependencies.md")
METADATA = ["cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"]


def main():
    declared = direct_dependencies()
    described = set(re.findall(r"^\| `([^`]+)` \|", DOCUMENT.read_text(), re.MULTILINE))
    faults = [f"{DOCUMENT} has no row for {name}" for name in sorted(declared - described)]
    faults += [f"{DOCUMENT} has a row for {name}, unused" for name in sorted(described - declared)]
    if faults:
        sys.exit("\n".join(faults))


def direct_dependencies():
    workspace = json.loads(subprocess.check_output(METADATA))
    dependencies = [d for package in workspace["packages"] for d in package["dependencies"]]
    return {d["name"] for d in dependencies if d["source"] is not None}


if __name__ == "__main__":
    main()
