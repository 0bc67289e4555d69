#!/usr/bin/env bash
# Usage: black-box.sh TARGET:STORE…
# Runs the black-box suite against each of these executables in target/targets/, over that store.
# In CI what has failed is run once more, by itself: see CONTRIBUTING.md.
set -euo pipefail

suite() {
  cargo test --locked --release --manifest-path examples/Cargo.toml -p target-tests "$@"
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
for tested in "$@"; do
  target=${tested%%:*} store=${tested#*:}
  echo "the black-box suite against $target over $store"
  export IDEMPTX_TARGET=$target IDEMPTX_STORE=$store
  skip=()
  if [ "$store" != redis ]; then
    skip=(--skip on_redis::)
  fi
  if suite --no-fail-fast -- "${skip[@]}" 2>&1 | tee "$log"; then
    continue
  fi
  mapfile -t failed < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log")
  .ci/flaky.sh "${#failed[@]}" "$tested: ${failed[*]}"
  suite -- --exact "${failed[@]}"
done
