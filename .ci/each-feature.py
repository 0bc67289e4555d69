#!/usr/bin/env python3
"""Lints every library crate without features, then with each of its features alone.

A feature may only add API, so each one must build by itself; `--all-features` hides it when one
leans on another.
"""

import json
import subprocess

METADATA = ["cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"]
LINT = ["cargo", "clippy", "--locked", "--quiet", "--no-default-features"]


def main():
    workspace = json.loads(subprocess.check_output(METADATA))
    published = [package for package in workspace["packages"] if package["publish"] is None]
    for package in published:
        named = sorted(set(package["features"]) - {"default"})
        for feature in ["", *named]:
            print(f"{package['name']} with {feature or 'no feature'}", flush=True)
            chosen = ["-p", package["name"], "--features", feature]
            subprocess.run([*LINT, *chosen, "--", "-D", "warnings"], check=True)


if __name__ == "__main__":
    main()
