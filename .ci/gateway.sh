#!/usr/bin/env bash
# Usage: gateway.sh [TARGET]
# Builds the gateway as it is released, target/TARGET/release/idemptx, for this machine or for a
# target whose programs it can run: first to be watched while it answers requests, and then again
# for what was seen, which takes a fifth of the instructions away.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-$(rustc --print host-tuple)}
build=(cargo build --locked --release -p idemptx-gateway --target "$target")
libraries=$(rustc --print target-libdir --target "$target")

if ! compgen -G "$libraries/libprofiler_builtins-*.rlib" >/dev/null; then
  echo "Rust has no profiler for $target: the gateway is built without a profile" >&2
  exec "${build[@]}"
fi

# Rust's own (rustup component add llvm-tools), or one that reads what Rust's compiler writes.
profdata=$(rustc --print sysroot)/lib/rustlib/$(rustc --print host-tuple)/bin/llvm-profdata
if [ ! -x "$profdata" ]; then
  .ci/require.sh llvm-profdata-19 llvm-19
  profdata=llvm-profdata-19
fi

# What the training starts.
.ci/require.sh redis-server redis-server
initdb=(/usr/lib/postgresql/*/bin/initdb)
.ci/require.sh "${initdb[0]}" postgresql

watched=$PWD/target/watched
mkdir -p "$watched" && rm -rf "$watched/seen" "$watched"/profile-*
# The profile of the build stays the same: it is a part of the names of functions.
RUSTFLAGS="${RUSTFLAGS:-} -C profile-generate=$watched/seen" CARGO_TARGET_DIR=$watched "${build[@]}"
BENCH_IDEMPTX=$watched/$target/release/idemptx cargo run --locked --release -p bench -- train
# A name of its own, without which cargo would take what was built for a former profile.
profile=$watched/profile-$(date +%s)
"$profdata" merge -o "$profile" "$watched/seen"
RUSTFLAGS="${RUSTFLAGS:-} -C profile-use=$profile" "${build[@]}"
