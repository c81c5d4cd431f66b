# The two commands of the README are `make demo` and `make test`. Both install the Debian packages they need
# (saying so), and keep to state, configuration, ports and users of their own: see scripts/.
# What needs root is run with sudo when you are not root.

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
TOOLS := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/tools
DENY_VERSION := 0.20.2
DIST := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/dist

.PHONY: help compiler python dist demo demo-down test test-full bench bench-runtime bench-slurm bench-images check fmt-check clippy fuzz-check doc tidy deny

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

# Rust links with a C compiler, and some of its crates are C.
compiler:
	@command -v cc >/dev/null || $(SUDO) bash -c 'NAME=make; . scripts/lib.sh; l=$$(mktemp); need_packages "$$l" gcc libc6-dev; rm -f "$$l"'

dist: compiler ## build the release: target/dist/situla and target/dist/spank_situla.so
	cargo xtask dist

demo: dist ## the three uses, MPI, a pull and the records, on a real four-node Slurm on this machine
	$(SUDO) env SITULA_DIST=$(DIST) scripts/demo run

demo-down: ## take away everything `make demo` brought
	$(SUDO) scripts/demo down

test: compiler ## every tier of tests; the last line has the totals
	@scripts/test

test-full: compiler ## the same, with the long cases
	@scripts/test --full

# The scripts that measure are Python.
python:
	@command -v python3 >/dev/null || $(SUDO) bash -c 'NAME=make; . scripts/lib.sh; l=$$(mktemp); need_packages "$$l" python3; rm -f "$$l"'

bench: dist python ## compare starting times with other engines
	$(SUDO) env SITULA_BIN=$(DIST)/situla scripts/bench

bench-runtime: dist python ## measure imports, ranks, memory and the serving of files
	$(SUDO) env SITULA_BIN=$(DIST)/situla scripts/bench-runtime

bench-slurm: dist python ## measure steps of a real Slurm with and without a container
	$(SUDO) env SITULA_BIN=$(DIST)/situla scripts/bench-slurm

bench-images: dist python ## compare pulling an image with other tools, and with the least that it can cost
	$(SUDO) env SITULA_BIN=$(DIST)/situla scripts/bench-images

check: compiler fmt-check clippy fuzz-check doc tidy ## formatting, lints, fuzz targets, documentation, dependency rules

fmt-check:
	cargo fmt --all --check

# The second sees what only a static program has.
clippy:
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTFLAGS="-C target-feature=+crt-static" cargo clippy --locked --package situla-sys --features own-start --target $$(rustc --print host-tuple) -- -D warnings

# The targets are no members of the workspace and take modules of it in by path. Fuzzing needs nightly Rust and a C++
# compiler; seeing that they build needs neither.
fuzz-check:
	cargo check --locked --quiet --manifest-path fuzz/Cargo.toml --no-default-features

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

tidy:
	cargo xtask tidy

# Advisories need a database from the network; licences, bans and sources do not.
deny: ## licences and sources of all dependencies (installs cargo-deny below target/ if it is missing)
	@PATH="$(TOOLS)/bin:$$PATH"; command -v cargo-deny >/dev/null || \
	  { echo "installing cargo-deny $(DENY_VERSION) into $(TOOLS)"; \
	    cargo install --quiet --locked --root $(TOOLS) --target-dir $(TOOLS)/build cargo-deny --version $(DENY_VERSION); }
	PATH="$(TOOLS)/bin:$$PATH" cargo deny --locked check licenses bans sources
