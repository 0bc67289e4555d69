#!/usr/bin/env python3
"""Holds the documents to the tests: whatever test they name as a proof exists."""

import re
import subprocess
import sys
from pathlib import Path

# A name of so many words in backticks is that of a test.
NAMED = re.compile(r"`((?:[a-z0-9]+_){4,}[a-z0-9]+)`")
POLICY = "crates/idemptx-core/src/policy/definition.rs"
DEFINED = re.compile(r"\b(?:fn|def) (\w+)\(")


def main():
    tracked = subprocess.check_output(["git", "ls-files", "-z"], text=True).split("\0")
    texts = {name: Path(name).read_text() for name in tracked if name.endswith((".md", ".rs", ".py"))}
    # The policy declares its settings in a table, and their names are long as well.
    policy = set(re.findall(r"\w+", Path(POLICY).read_text()))
    defined = policy.union(*(DEFINED.findall(text) for name, text in texts.items() if not name.endswith(".md")))
    faults = [
        f"{name} names the test {test}, which there is not"
        for name, text in texts.items()
        if name.endswith(".md")
        for test in NAMED.findall(text)
        if test not in defined
    ]
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
