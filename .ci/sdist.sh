#!/usr/bin/env bash
# Usage: sdist.sh ENVIRONMENT PACKAGE
# Installs the package from its source distribution, as somebody without a wheel would: it must
# have everything in it that it is built from.
set -euo pipefail

rm -rf target/sdist
"$1/bin/maturin" sdist -m "$2/Cargo.toml" -o target/sdist
# It is to be built soon, not to be fast: with the dependencies that are built already.
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target} MATURIN_PEP517_ARGS="--profile dev" \
  .ci/venv.sh target/venv-sdist target/sdist/*.tar.gz
cd / # where there is nothing of ours to import
"$OLDPWD/target/venv-sdist/bin/python" -c 'import idemptx; print(idemptx.__file__)'
