# The chores of this repository. `make help` lists them; CI runs the same recipes.

.DEFAULT_GOAL := help
.PHONY: help setup build run test lint deny unit runtimes conformance bench soak fuzz clean

help: ## List the chores
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing on this machine: interpreters and tools
	@scripts/setup.sh

build: ## Build the program: target/release/hearth
	cargo build --release --package hearth

run: setup ## Start the platform, deploy two examples, call them; stays up (ONCE=1 stops)
	cargo build --profile quick --package hearth
	@HEARTH=target/quick/hearth scripts/run.sh

test: setup lint unit runtimes conformance ## Everything that can be tested

lint: ## Format, clippy and documentation, without warnings
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- --deny warnings
	RUSTDOCFLAGS='--deny warnings' cargo doc --workspace --no-deps --document-private-items --quiet

deny: ## Licences and sources of all dependencies
	@command -v cargo-deny > /dev/null || cargo install --locked --quiet cargo-deny
	cargo deny --log-level error check licenses bans sources

unit: ## The Rust crates' own tests, escape and kill drills included
	cargo test --workspace --exclude conformance

runtimes: ## The workers' own tests, in their languages
	node --test runtimes/javascript/tests/
	python3 -m unittest discover --start-directory runtimes/python/tests

conformance: ## The program from outside: black-box cases for every runtime
	cargo build --package hearth
	RUST_TEST_THREADS=4 cargo test --package conformance

bench: setup build ## Measure; see docs/performance.md (ARGS="--quick" for a short run)
	cargo xtask bench --hearth target/release/hearth $(ARGS)
	cargo run --quiet --release --package adapter-sandbox --example launches

soak: setup build ## Ten minutes of everything at once; fails if anything grows (SECONDS=600)
	@scripts/soak.sh $(or $(SECONDS),600)

fuzz: ## Fuzz the decoder of the worker protocol for a minute (SECONDS=60)
	@scripts/fuzz.sh $(or $(SECONDS),60)

clean: ## Remove everything that was built
	cargo clean
