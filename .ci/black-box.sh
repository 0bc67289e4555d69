#!/usr/bin/env bash
# Usage: black-box.sh TARGET:STORE…
# Runs the black-box suite against each of these executables in target/targets/, over that store.
set -euo pipefail

for tested in "$@"; do
  target=${tested%%:*} store=${tested#*:}
  echo "the black-box suite against $target over $store"
  skip=()
  if [ "$store" != redis ]; then
    skip=(-- --skip on_redis::)
  fi
  IDEMPTX_TARGET=$target IDEMPTX_STORE=$store cargo test --locked --release \
    --manifest-path examples/Cargo.toml -p target-tests "${skip[@]}"
done
