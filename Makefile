# Two commands matter: `make check` and `make test`.
# Each works on a bare Debian machine with a Rust toolchain and installs what else it needs.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: help demo gateway python python-oldest sdist targets test test-all check bench clean

# What is built for tests is built with the same packages and features each time: cargo would
# build a library once more for any other selection.
BUILD := --locked --workspace --exclude bench --all-features
DEBUG = $(or $(CARGO_TARGET_DIR),target)/debug

# nextest where it is installed; it runs the tests side by side and ends those that hang.
# It leaves out the black-box suite by itself: see .config/nextest.toml.
RUNNER = $(if $(shell command -v cargo-nextest),nextest run,test --lib --bins --tests)
SUITE_LEFT_OUT = $(if $(shell command -v cargo-nextest),,--exclude target-tests)

# One executable for each front door of the target application.
TARGETS_RUST := actix axum gateway plain
TARGETS_PYTHON := fastapi-decorator fastapi-middleware
# Those that the black-box suite is run against; `plain` has nothing to be tested.
# Each with the stores that it is run over, `redis` with memory where one process will do.
# The first have every store and every kind of front door. With the others, which `make test-all`
# runs too, axum, the gateway and Python each have every store.
# Those in Python compute where the others wait: in this order one of them runs beside others.
PAIRS := fastapi-middleware:sqlite axum:redis gateway:postgres
PAIRS_OTHER := actix:redis fastapi-decorator:redis axum:sqlite axum:postgres gateway:redis \
	fastapi-middleware:postgres gateway:sqlite

# The Python package is built, tested and checked as the wheel that users install, in an
# environment with the newest stack that it is tested with, and in one with the oldest.
PACKAGE := crates/idemptx-py
PYTHON := target/venv
PYTHON_OLDEST := target/venv-oldest
PYTHON_TESTED := $(PACKAGE) examples
PYTHON_CHECKED := examples tests/targets/fastapi
WHEEL := target/wheels/.built
WHEEL_SOURCES = $(shell find Cargo.* crates/*/*.* crates/*/src $(PACKAGE)/python -type f -not -name '*.py[co]')

# Debian keeps the server's programs off the PATH, in a directory for each version.
POSTGRES = $(firstword $(wildcard /usr/lib/postgresql/*/bin/initdb) initdb)
# It keeps those that only root is meant to run in a directory that others have not on the PATH.
POOLER = $(firstword $(wildcard /usr/sbin/pgbouncer) pgbouncer)

help: ## lists the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: ## shows the gateway in front of a service that knows nothing of retries
	cargo run --locked --profile demo -p idemptx-gateway --no-default-features --features sqlite \
		-- demo --store sqlite:target/demo/keys.db

python: $(PYTHON)/.ready ## builds the Python wheel, and an environment with it in target/

python-oldest: $(PYTHON_OLDEST)/.ready ## the same with the oldest versions that are supported

sdist: $(PYTHON)/.requirements ## installs the Python package from its sources into target/venv-sdist
	.ci/sdist.sh $(PYTHON) $(PACKAGE)

targets: $(PYTHON)/.ready ## builds the tests, and the target applications into target/targets/
	cargo build $(BUILD) --lib --bins --tests
	mkdir -p target/targets
	for name in $(TARGETS_RUST); do \
		install -m 755 $(DEBUG)/target-$$name target/targets/$$name; done
	install -m 755 -t target/targets $(addprefix tests/targets/fastapi/bin/,$(TARGETS_PYTHON))

test: targets ## runs the tests: unit, store, doc, Python and black-box
	.ci/require.sh redis-server redis-server
	.ci/require.sh $(POSTGRES) postgresql
	.ci/require.sh $(POOLER) pgbouncer
	.ci/require.sh curl curl
	.ci/require.sh chromium chromium
	.ci/require.sh h2load nghttp2-client
	.ci/require.sh promtool prometheus
	.ci/require.sh node nodejs
	.ci/require.sh nginx nginx-light
	.ci/require.sh haproxy haproxy
	.ci/released.sh
	cargo $(RUNNER) $(BUILD) $(SUITE_LEFT_OUT)
	cargo test $(BUILD) --doc
	.ci/pytest.sh $(PYTHON) $(PYTHON_TESTED)
	.ci/black-box.sh $(PAIRS)

# The exploration of interleavings is exhaustive, and more pairs of target and store are tested.
test-all: export IDEMPTX_EXPLORE = full
test-all: PAIRS += $(PAIRS_OTHER)
test-all: test python-oldest ## runs every test: `test`, and what takes longer
	@# The gateway as it is built with few features says so where another is wanted.
	cargo test --locked -p idemptx-gateway --lib --no-default-features not_built_in
	@# What the oldest stack warns of has been mended in newer ones.
	PYTEST_ADDOPTS="-W ignore" .ci/pytest.sh $(PYTHON_OLDEST) $(PYTHON_TESTED)
	.ci/upgrade.sh
	$(MAKE) sdist

check: $(PYTHON)/.ready ## format, lints, each feature alone, docs, dependencies
	cargo fmt --all --check
	.ci/dependencies.py
	.ci/named-tests.py
	.ci/words.py
	.ci/pure-core.sh
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	.ci/each-feature.py
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --all-features
	.ci/deny.sh
	.ci/workflows.sh
	.ci/kubernetes.sh
	.ci/check-python.sh $(PYTHON) $(PACKAGE) $(PYTHON_CHECKED)

gateway: ## builds the gateway as it is released, for what was seen while it answered requests
	.ci/gateway.sh

# BENCH_FORMER names the gateway of a former release, to be compared with in the same rounds.
bench: ## runs the benchmarks; QUICK=1 takes less time, and tells less
	.ci/require.sh nginx nginx-light
	.ci/require.sh haproxy haproxy
	.ci/require.sh valgrind valgrind
	bench/python/prepare.sh target/bench
	.ci/gateway.sh
	BENCH_PYTHON=target/bench/python/bin/python BENCH_ORIGINAL=target/bench/original \
	BENCH_IDEMPTX=$(or $(CARGO_TARGET_DIR),target)/$(shell rustc --print host-tuple)/release/idemptx \
	  cargo run --locked --release -p bench -- $(if $(QUICK),--quick)

clean: ## removes everything that was built, the tools too
	cargo clean

$(WHEEL): $(PYTHON)/.requirements $(WHEEL_SOURCES)
	rm -rf target/wheels
	$(PYTHON)/bin/maturin build --profile dev --locked -m $(PACKAGE)/Cargo.toml -o target/wheels
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
