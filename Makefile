# Two commands matter: `make check` and `make test`.
# Each works on a bare Debian machine with a Rust toolchain and installs what else it needs.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: help demo targets test check bench clean

EXAMPLES := --manifest-path examples/Cargo.toml
EXAMPLES_RELEASE := $(or $(CARGO_TARGET_DIR),examples/target)/release

# nextest where it is installed; it runs the tests side by side and ends those that hang.
RUNNER = $(if $(shell command -v cargo-nextest),nextest run,test --tests)

# One executable for each front door of the target application.
TARGETS := axum plain

# Debian keeps the server's programs off the PATH, in a directory for each version.
POSTGRES = $(firstword $(wildcard /usr/lib/postgresql/*/bin/initdb) initdb)

help: ## lists the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: ## runs the orders example
	cargo run --locked --release $(EXAMPLES) -p orders

targets: ## builds the target applications into target/targets/
	cargo build --locked --release $(EXAMPLES) $(addprefix --bin ,$(TARGETS))
	install -D -m 755 -t target/targets $(addprefix $(EXAMPLES_RELEASE)/,$(TARGETS))

test: ## runs every test: unit, store, doc and black-box
	.ci/require.sh redis-server redis-server
	.ci/require.sh $(POSTGRES) postgresql
	cargo $(RUNNER) --locked --workspace --all-features
	cargo test --locked --workspace --all-features --doc
	$(MAKE) targets
	cargo test --locked --release $(EXAMPLES) -p target-tests

check: ## format, lints, each feature alone, docs, dependencies
	cargo fmt --all --check
	cargo fmt --all --check $(EXAMPLES)
	.ci/dependencies.py
	.ci/pure-core.sh
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	cargo clippy --locked $(EXAMPLES) --workspace --all-targets --all-features -- -D warnings
	.ci/each-feature.py
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --all-features
	.ci/deny.sh

bench: ## runs the benchmarks
	.ci/require.sh redis-server redis-server
	.ci/require.sh $(POSTGRES) postgresql
	cargo run --locked --release $(EXAMPLES) -p bench

clean: ## removes everything that was built, the tools too
	cargo clean
	cargo clean $(EXAMPLES)
