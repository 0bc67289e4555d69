#!/usr/bin/env bash
# Holds deny.toml over the workspace: licences, banned crates, and where crates come from.
# The advisory database is a git repository of its own, out of reach of a machine that has the
# package registries alone; so `advisories` is not among the checks.
set -euo pipefail

version=0.20.2
deny=$(command -v cargo-deny || echo target/tools/bin/cargo-deny)
if [ ! -x "$deny" ]; then
  # Unoptimised: it runs for seconds, so a shorter build is worth more than a faster tool.
  cargo install cargo-deny --version "$version" --locked --root target/tools \
    --profile dev --config 'profile.dev.debug = false'
fi

"$deny" --locked --all-features check bans licenses sources
