#!/usr/bin/env bash
# Usage: black-box.sh TARGET…
# Runs the black-box suite against each of these executables in target/targets/.
set -euo pipefail

for target in "$@"; do
  echo "the black-box suite against $target"
  IDEMPTX_TARGET=$target cargo test --locked --release --manifest-path examples/Cargo.toml \
    -p target-tests
done
