#!/usr/bin/env bash
# Usage: venv.sh DIRECTORY [PIP-ARGUMENT…]
# Makes a Python environment, anew, with what the arguments tell pip to install.
set -euo pipefail

directory=$1
.ci/require.sh python3 python3
.ci/require.sh python3 python3-venv -m ensurepip --version
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
  echo "python3 is $(python3 -V): idemptx needs 3.10 or later" >&2
  exit 1
fi
python3 -m venv --clear "$directory"
"$directory/bin/pip" install --quiet --disable-pip-version-check "${@:2}"
