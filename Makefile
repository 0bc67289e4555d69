# Two commands matter: `make check` and `make test`.
# Each works on a bare Debian machine with a Rust toolchain and installs what else it needs.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: help demo python sdist targets test check bench clean

EXAMPLES := --manifest-path examples/Cargo.toml
EXAMPLES_RELEASE := $(or $(CARGO_TARGET_DIR),examples/target)/release

# nextest where it is installed; it runs the tests side by side and ends those that hang.
RUNNER = $(if $(shell command -v cargo-nextest),nextest run,test --tests)

# One executable for each front door of the target application.
TARGETS_RUST := axum gateway plain
TARGETS_PYTHON := fastapi-decorator fastapi-middleware
# Those that the black-box suite is run against; `plain` has nothing to be tested.
# Each with the stores that it is run over, `redis` with memory where one process will do.
TARGETS_TESTED := $(addprefix axum:,redis sqlite postgres) \
	$(addprefix gateway:,redis sqlite postgres) \
	fastapi-decorator:redis fastapi-decorator:postgres \
	fastapi-middleware:redis fastapi-middleware:sqlite

# The Python package is built, tested and checked as the wheel that users install, in an
# environment with the newest stack that it is tested with, and in one with the oldest.
PACKAGE := crates/idemptx-py
PYTHON := target/venv
PYTHON_OLDEST := target/venv-oldest
PYTHON_EXAMPLES := examples/payments-fastapi examples/target-fastapi
WHEEL := target/wheels/.built
WHEEL_SOURCES = $(shell find Cargo.* crates/*/*.* crates/*/src $(PACKAGE)/python -type f -not -name '*.py[co]')

# Debian keeps the server's programs off the PATH, in a directory for each version.
POSTGRES = $(firstword $(wildcard /usr/lib/postgresql/*/bin/initdb) initdb)
# It keeps those that only root is meant to run in a directory that others have not on the PATH.
POOLER = $(firstword $(wildcard /usr/sbin/pgbouncer) pgbouncer)

help: ## lists the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: ## shows the gateway in front of a service that knows nothing of retries
	cargo run --locked --release -p idemptx-gateway -- demo --store sqlite:target/demo/keys.db

python: $(PYTHON)/.ready $(PYTHON_OLDEST)/.ready ## builds the Python wheel, and environments with it in target/

sdist: $(PYTHON)/.requirements ## installs the Python package from its sources into target/venv-sdist
	.ci/sdist.sh $(PYTHON) $(PACKAGE)

targets: $(PYTHON)/.ready ## builds the target applications into target/targets/
	cargo build --locked --release $(EXAMPLES) $(addprefix --bin ,$(TARGETS_RUST))
	install -D -m 755 -t target/targets $(addprefix $(EXAMPLES_RELEASE)/,$(TARGETS_RUST)) \
		$(addprefix examples/target-fastapi/bin/,$(TARGETS_PYTHON))

test: python ## runs every test: unit, store, doc, Python and black-box
	.ci/require.sh redis-server redis-server
	.ci/require.sh $(POSTGRES) postgresql
	.ci/require.sh $(POOLER) pgbouncer
	.ci/require.sh curl curl
	.ci/require.sh chromium chromium
	.ci/require.sh h2load nghttp2-client
	.ci/require.sh node nodejs
	cargo $(RUNNER) --locked --workspace --all-features
	@# The gateway as it is built without features says so where one is wanted.
	cargo test --locked -p idemptx-gateway --lib
	cargo test --locked --workspace --all-features --doc
	.ci/pytest.sh $(PYTHON) $(PACKAGE) examples/payments-fastapi
	@# What the oldest stack warns of has been mended in newer ones.
	PYTEST_ADDOPTS="-W ignore" .ci/pytest.sh $(PYTHON_OLDEST) $(PACKAGE) examples/payments-fastapi
	cargo test --locked --release $(EXAMPLES) -p orders
	$(MAKE) targets
	.ci/black-box.sh $(TARGETS_TESTED)
	$(MAKE) sdist

check: $(PYTHON)/.ready ## format, lints, each feature alone, docs, dependencies
	cargo fmt --all --check
	cargo fmt --all --check $(EXAMPLES)
	.ci/dependencies.py
	.ci/named-tests.py
	.ci/pure-core.sh
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	cargo clippy --locked $(EXAMPLES) --workspace --all-targets --all-features -- -D warnings
	.ci/each-feature.py
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --all-features
	.ci/deny.sh
	.ci/workflows.sh
	.ci/check-python.sh $(PYTHON) $(PACKAGE) $(PYTHON_EXAMPLES)

bench: ## runs the benchmarks; QUICK=1 takes less time, and tells less
	.ci/require.sh redis-server redis-server
	.ci/require.sh $(POSTGRES) postgresql
	.ci/require.sh nginx nginx-light
	.ci/require.sh haproxy haproxy
	examples/bench/python/prepare.sh target/bench
	cargo build --locked --release -p idemptx-gateway
	BENCH_PYTHON=target/bench/python/bin/python BENCH_ORIGINAL=target/bench/original \
	BENCH_IDEMPTX=$(or $(CARGO_TARGET_DIR),target)/release/idemptx \
	  cargo run --locked --release $(EXAMPLES) -p bench -- $(if $(QUICK),--quick)

clean: ## removes everything that was built, the tools too
	cargo clean
	cargo clean $(EXAMPLES)

$(WHEEL): $(PYTHON)/.requirements $(WHEEL_SOURCES)
	rm -rf target/wheels
	$(PYTHON)/bin/maturin build --release --locked -m $(PACKAGE)/Cargo.toml -o target/wheels
	touch $@

$(PYTHON)/.requirements: $(PACKAGE)/requirements/dev.txt $(PACKAGE)/requirements/test.txt
	.ci/venv.sh $(PYTHON) -r $<
	touch $@

$(PYTHON_OLDEST)/.requirements: $(PACKAGE)/requirements/test.txt $(PACKAGE)/requirements/oldest.txt
	.ci/venv.sh $(PYTHON_OLDEST) -r $< -c $(word 2,$^)
	touch $@

%/.ready: %/.requirements $(WHEEL)
	$*/bin/pip install --quiet --no-deps --force-reinstall target/wheels/*.whl
	touch $@
