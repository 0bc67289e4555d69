#!/usr/bin/env python3
"""Holds the documents to the tests: whatever test they name as a proof exists."""

import re
import subprocess
import sys
from pathlib import Path

# A name of so many words in backticks is that of a test, or else of a policy's field.
NAMED = re.compile(r"`((?:[a-z0-9]+_){4,}[a-z0-9]+)`")
DEFINED = re.compile(r'\b(?:fn|def) (\w+)\(|"(\w+)";')


def main():
    tracked = subprocess.check_output(["git", "ls-files", "-z"], text=True).split("\0")
    texts = {name: Path(name).read_text() for name in tracked if name.endswith((".md", ".rs", ".py"))}
    defined = {
        name
        for path, text in texts.items()
        if not path.endswith(".md")
        for found in DEFINED.findall(text)
        for name in found
    }
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
