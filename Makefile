# Every target installs what it needs on a Debian machine with Rust 1.95. Root is needed where
# network namespaces are: demo, test, test-swarm, bench, tls-audit.

SHELL := /bin/bash
.PHONY: demo test test-swarm bench tls-audit fuzz lint build install

demo: install build
	target/debug/deadlight-demo

test: install build
	@command -v cargo-nextest >/dev/null || cargo install --locked cargo-nextest
	cargo nextest run --workspace $(if $(CI),--profile ci,)

test-swarm: install build
	@tests/install.sh swarm
	cargo test -p deadlight-tests --test swarm --locked -- $(STORIES)

bench: install
	@command -v masscan >/dev/null || apt-get install -y --no-install-recommends masscan
	cargo build --workspace --release
	target/release/deadlight-bench

# sslyze in a namespace with the agent, and judged by Mozilla's "modern" configuration.
tls-audit: install build
	@[ -x target/sslyze/bin/sslyze ] || { \
		python3 -m ensurepip --version >/dev/null 2>&1 || apt-get install -y --no-install-recommends python3-venv; \
		python3 -m venv target/sslyze && target/sslyze/bin/pip install --quiet sslyze; }
	SSLYZE=$(CURDIR)/target/sslyze/bin/sslyze target/debug/deadlight-bench audit

# Minutes on each target; needs clang. The flags of the fuzzer are for nightly compilers only.
fuzz: MINUTES ?= 1
fuzz:
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	cd tests/fuzz && for target in answer payloads; do \
		RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir . $$target -- -max_total_time=$$((60 * $(MINUTES))) || exit 1; done

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo fetch --locked --quiet
	cargo deny --offline check bans licenses sources

build:
	cargo build --workspace --locked

install:
	@command -v cargo >/dev/null || { echo "cargo is missing; hint: install Rust 1.95 or later from https://rustup.rs" >&2; exit 1; }
	@[ "$$(id -u)" = 0 ] || { echo "network namespaces need root; hint: sudo -E make $(MAKECMDGOALS)" >&2; exit 1; }
	@tests/install.sh
