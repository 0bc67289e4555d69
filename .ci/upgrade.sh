#!/usr/bin/env bash
# Usage: upgrade.sh
# Runs a rolling upgrade over every store: processes of the target application as it was at the
# commit in .ci/upgrade-from share a store with today's, which `make targets` has built.
set -euo pipefail
cd "$(dirname "$0")/.."

commit=$(grep -v '^#' .ci/upgrade-from)
target=${CARGO_TARGET_DIR:-$PWD/target}
former=target/targets/axum-former

is_here() { git cat-file -e "$commit^{commit}" 2>/dev/null; }

if ! is_here && ! { git fetch --quiet --depth 1 origin "$commit" && is_here; }; then
  # A copy without a history cannot have it; a history without it has been rewritten.
  if [ "$(git rev-parse --is-shallow-repository 2>/dev/null || echo true)" = true ]; then
    echo "LEFT OUT: the rolling upgrade, for want of commit $commit: see .ci/upgrade-from" >&2
    exit 0
  fi
  echo "commit $commit is not in the history: name another one in .ci/upgrade-from" >&2
  exit 1
fi

if [ "$(cat "$former.commit" 2>/dev/null)" != "$commit" ]; then
  sources=target/upgrade
  rm -rf "$sources" "$former.commit"
  mkdir -p "$sources"
  git archive "$commit" | tar -x -C "$sources"
  # In the same folder and with the same features as today's, so that what both depend on, which
  # is most of it, is not built again. Under another version, or the crates of both would have the
  # same names there, and cargo would take the one for the other.
  (
    cd "$sources"
    sed -i '0,/^version = /s/^\(version = "[0-9]*\.[0-9]*\).*/\1.9999"/' Cargo.toml
    cargo build --workspace --exclude bench --all-features --bin target-axum --target-dir "$target"
  )
  install -m 755 "$target/debug/target-axum" "$former"
  # What bears this name is to be today's: cargo puts it back.
  rm "$target/debug/target-axum"
  echo "$commit" >"$former.commit"
fi
IDEMPTX_TARGET=axum cargo test --locked --workspace --exclude bench --all-features \
  --test black_box -- upgrades::
