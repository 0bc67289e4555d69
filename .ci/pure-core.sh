#!/usr/bin/env bash
# Holds the invariant "the core is pure": none of its dependencies, on any platform and with any
# feature, brings a runtime, a socket, a clock or randomness. (Its own code: its clippy.toml.)
set -euo pipefail

impure='tokio|mio|socket2|rand|getrandom|chrono|time'
tree=$(cargo tree --locked -e normal --target all --all-features -p idemptx-core --prefix none)
if found=$(grep -E "^($impure) v" <<<"$tree"); then
  printf 'idemptx-core must stay pure, but depends on:\n%s\n' "$found" >&2
  exit 1
fi
