#!/usr/bin/env bash
# Usage: check-python.sh ENVIRONMENT PACKAGE EXAMPLE…
# Format, lints and types of everything in Python; and the compiled part against its stub.
set -euo pipefail

bin=$PWD/$1/bin package=$2 examples=("${@:3}")
"$bin/ruff" format --check "$package" "${examples[@]}"
"$bin/ruff" check "$package" "${examples[@]}"
(cd "$package" && "$bin/mypy")
for example in "${examples[@]}"; do
  echo "$example"
  (cd "$example" && "$bin/mypy" --strict --python-version 3.10 .)
done
"$bin/python" -m mypy.stubtest idemptx._idemptx
