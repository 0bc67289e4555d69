#!/usr/bin/env bash
# Usage: prepare.sh DIRECTORY
# Makes an environment there with the package as it stands here, and puts the original package,
# which has the same name, into a directory of its own.
set -euo pipefail
cd "$(dirname "$0")/../.."

directory=$1
python=$directory/python/bin/python
pip=("$python" -m pip --disable-pip-version-check --quiet)

if [ ! -x "$python" ]; then
  python3 -m venv "$directory/python"
fi
"${pip[@]}" install --requirement bench/python/requirements.txt
if [ ! -d "$directory/original/idemptx" ]; then
  "${pip[@]}" install --no-deps --target "$directory/original" idemptx==0.2.2
fi

rm -rf "$directory/wheels"
"$directory/python/bin/maturin" build --quiet --locked --release \
  --manifest-path crates/idemptx-py/Cargo.toml --out "$directory/wheels"
"${pip[@]}" install --no-deps --force-reinstall "$directory"/wheels/*.whl
