#!/usr/bin/env bash
# Usage: black-box.sh TARGET:STORE…
# Runs the black-box suite against each of these executables in target/targets/, over that store.
# In CI what has failed is run once more, by itself: see CONTRIBUTING.md.
set -euo pipefail

# Most of the time the tests wait for servers and for leases, so that more run than there are cores.
pairs_at_once=2
export RUST_TEST_THREADS=4

suite() {
  # The selection that `make targets` builds: any other would be built once more.
  cargo test --locked --workspace --exclude bench --all-features --test black_box "$@"
}

# Usage: against TARGET:STORE ARGUMENT…
against() {
  echo "the black-box suite against ${1%%:*} over ${1#*:}"
  IDEMPTX_TARGET=${1%%:*} IDEMPTX_STORE=${1#*:} suite --no-fail-fast -- "${@:2}"
}

# Leaves what was said in $logs, and what has failed beside it; says it when all of it is there.
try() {
  # Upgrades have two targets and every store: upgrade.sh runs them.
  local pair=$1 skip=(--skip upgrades::) began=$SECONDS
  if [ "${pair#*:}" != redis ]; then
    skip+=(--skip on_redis::)
  fi
  if ! against "$pair" "${skip[@]}" >"$logs/$pair" 2>&1; then
    sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$logs/$pair" >"$logs/$pair.failed"
  fi
  flock "$logs" cat "$logs/$pair"
  echo "$((SECONDS - began)) s $pair" >>"$logs/times"
}

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
suite --no-run
for pair in "$@"; do
  while [ "$(jobs -rp | wc -l)" -ge "$pairs_at_once" ]; do
    wait -n
  done
  try "$pair" &
done
wait
echo "the black-box suite took:"
sort -rn "$logs/times"

for pair in "$@"; do
  if [ -e "$logs/$pair.failed" ]; then
    mapfile -t failed <"$logs/$pair.failed"
    .ci/flaky.sh "${#failed[@]}" "$pair: ${failed[*]}"
    against "$pair" --test-threads 1 --exact "${failed[@]}"
  fi
done
