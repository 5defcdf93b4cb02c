# Every target installs what it needs on a Debian machine with Rust 1.95. Root is needed where
# network namespaces are: demo, test, test-swarm, compat, record, bench, tls-audit.

SHELL := /bin/bash
.PHONY: demo test trees test-swarm compat record old bench tls-audit simulate fuzz fuzz-corpus mutants pictures lint release images packages build install compiler

demo: install build
	target/debug/deadlight-demo

test: install trees cargo-nextest cargo-cyclonedx cargo-deb build
	@for suite in $(SUITES); do tests/packages/tree.sh $$suite >/dev/null || exit 1; done
	cargo nextest run --workspace $(if $(CI),--profile ci,)

# The Debians of the tests come from the network while the compiler has the processors: `test` waits for them, or says what
# went wrong.
SUITES := bookworm trixie
trees: install
	@for suite in $(SUITES); do tests/packages/tree.sh $$suite || exit 1; done >/dev/null 2>&1 &

test-swarm: install cargo-deb build
	@tests/install.sh swarm
	cargo test -p deadlight-tests --test swarm --locked -- $(STORIES)

# Revision OLD beside this one, in namespaces: its agent under our scanner, its scanner over our agent, and each from the
# other's files. It is built into target/compat, with our dependencies where they are the same.
compat: old
	DEADLIGHT_OLD_BIN=$(CURDIR)/target/compat/bin cargo nextest run -p deadlight-tests --no-fail-fast --ignore-default-filter -E 'binary(compat)'
	@result=0; for program in deadlight-agent deadlight-scanner; do echo "$$program of $(OLD):"; \
		DEADLIGHT_OLD_BIN=$(CURDIR)/target/compat/bin DEADLIGHT_OLD_PLAYS=$$program cargo nextest run -p deadlight-tests --no-fail-fast \
			-E 'test(/^closed_loop::v|^pull::the_loop|^enrol::two_commands|^life::a_certificate_is_renewed/)' || result=1; done; exit $$result

# What revision OLD says and leaves behind, for tests/fixtures/versions; once for each release.
record: old
	DEADLIGHT_OLD_BIN=$(CURDIR)/target/compat/bin DEADLIGHT_OLD_PLAYS="deadlight-agent deadlight-scanner" \
		target/debug/deadlight-record tests/fixtures/versions/$(OLD)

old: install build
	@[ -n "$(OLD)" ] || { echo "which other version? hint: make $(MAKECMDGOALS) OLD=v0.1.0" >&2; exit 1; }
	tests/compat/build.sh "$(OLD)"

# On the engine of DOCKER_HOST. The same sources and packages give the same layers.
images: VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
images: compiler
	@command -v setcap >/dev/null || apt-get install -y --no-install-recommends libcap2-bin
	cargo build --release --locked -p deadlight-agent -p deadlight-scanner
	docker/images/contexts.sh target/release target/images
	for name in agent scanner; do docker build --quiet --tag deadlight-$$name:$(VERSION) --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$$(git rev-parse HEAD) target/images/$$name || exit 1; done
	docker image ls 'deadlight-*:$(VERSION)'
	@for name in agent scanner; do size=$$(docker image inspect --format '{{.Size}}' deadlight-$$name:$(VERSION)); \
		[ "$$size" -lt 25000000 ] || { echo "deadlight-$$name has $$size bytes; 25 MB are too many" >&2; exit 1; }; done

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

# The whole pair under simulated time, SEEDS courses of trouble; `make test` plays 300.
simulate: SEEDS ?= 10000
simulate:
	SEEDS=$(SEEDS) cargo test -p deadlight-tests --test simulation --locked -- --nocapture whatever

# MINUTES on each of TARGETS, or RUNS of it. An input that takes 100 ms of a core, or 16 MiB at once, is a finding. The
# flags of the fuzzer are for nightly compilers only. SANITIZER=none is several times as fast, for runs by the 100,000,000:
# what is unsafe is in the libraries alone. What reaches new code goes to tests/fuzz/found; `make fuzz-corpus` takes over
# into the corpus what adds to it.
FUZZ := RUSTC_BOOTSTRAP=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_STRIP=none cargo fuzz
TARGETS ?= $(basename $(notdir $(wildcard tests/fuzz/targets/*.rs)))
SANITIZER ?= address
MAX_LEN ?= 65536
LIMITS = -timeout=10 -malloc_limit_mb=16 -rss_limit_mb=1024 -max_len=$(MAX_LEN)
fuzz: MINUTES ?= 1
fuzz: UNTIL = $(if $(RUNS),-runs=$(RUNS),-max_total_time=$$((60 * $(MINUTES))))
fuzz: cargo-fuzz
	@for target in $(TARGETS); do mkdir -p tests/fuzz/found/$$target; \
		$(FUZZ) run --sanitizer $(SANITIZER) --fuzz-dir tests/fuzz --features libfuzzer $$target tests/fuzz/found/$$target tests/fuzz/corpus/$$target \
			-- $(LIMITS) $(UNTIL) -print_final_stats=1 || exit 1; done

fuzz-corpus: cargo-fuzz
	@for target in $(TARGETS); do mkdir -p tests/fuzz/found/$$target; \
		$(FUZZ) run --sanitizer $(SANITIZER) --fuzz-dir tests/fuzz --features libfuzzer $$target tests/fuzz/corpus/$$target tests/fuzz/found/$$target \
			-- $(LIMITS) -merge=1 || exit 1; done

# Bugs planted one at a time in what decides (.cargo/mutants.toml); a unit test of the same package has to fail for each.
# Works on a copy. Results are in target/mutants/PACKAGE; hours on two cores: PACKAGES=shared or MUTANTS='--re permits' for less
# (-f adds files to those of the configuration).
mutants: PACKAGES ?= shared scanner agent
mutants: cargo-mutants
	@result=0; for package in $(PACKAGES); do mkdir -p target/mutants/$$package; \
		cargo mutants --package deadlight-$$package --output target/mutants/$$package --no-shuffle --timeout 600 \
			--cargo-arg=--lib $(MUTANTS) || result=1; done; exit $$result

# The pictures of README.md, made by the test that looks at the pages, and by the demo.
pictures: install build
	cargo nextest run -p deadlight-tests -E 'test(everybody_can_read_it)'
	mkdir -p docker/pictures
	cp target/pictures/{overview-light,overview-phone,finding-light,nodes-dark}.png docker/pictures
	target/debug/deadlight-demo docker/pictures/loop.svg

# deadlight-agent and deadlight-scanner for Debian, into target/debian. They run on this machine's release and later ones.
packages: compiler cargo-deb
	cargo build --release --locked -p deadlight-agent -p deadlight-scanner
	docker/debian/build.sh $(CURDIR)/target

lint: compiler cargo-deny
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
	cargo fetch --locked --quiet
	cargo deny --offline check bans licenses sources

# Out of a clean tree, best at a tag: target/release-VERSION (docker/docs/release.md).
release: compiler cargo-auditable cargo-cyclonedx cargo-deb
	docker/release.sh

build:
	cargo build --workspace --locked

install:
	@command -v cargo >/dev/null || { echo "cargo is missing; hint: install Rust 1.95 or later from https://rustup.rs" >&2; exit 1; }
	@[ "$$(id -u)" = 0 ] || { echo "network namespaces need root; hint: sudo -E make $(MAKECMDGOALS)" >&2; exit 1; }
	@tests/install.sh

compiler:
	@tests/install.sh build

# Tools out of cargo's registry, where they are not there yet.
TOOLS := cargo-auditable cargo-cyclonedx cargo-deb cargo-deny cargo-fuzz cargo-mutants cargo-nextest
.PHONY: $(TOOLS)
$(TOOLS):
	@command -v $@ >/dev/null || cargo install --locked $@

# What these do takes no longer when they are not optimized, and they are ready in half the time.
cargo-cyclonedx cargo-deb cargo-nextest: export CARGO_PROFILE_RELEASE_OPT_LEVEL := 0
cargo-cyclonedx cargo-deb cargo-nextest: export CARGO_PROFILE_RELEASE_LTO := off
cargo-cyclonedx cargo-deb cargo-nextest: export CARGO_PROFILE_RELEASE_CODEGEN_UNITS := 256
