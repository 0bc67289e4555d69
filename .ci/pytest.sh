#!/usr/bin/env bash
# Usage: pytest.sh ENVIRONMENT FOLDER…
# Runs each folder's tests from within it, against the package that is installed.
set -euo pipefail

python=$PWD/$1/bin/python
for folder in "${@:2}"; do
  echo "$folder in $1"
  (cd "$folder" && "$python" -m pytest)
done
