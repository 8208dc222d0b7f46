# tocsin: `make up` runs it, `make test` proves it. Everything that is fetched stays below target/.

TOOLS := target/tools
DATA ?= tocsin-data
export TOCSIN_NATS_SERVER ?= $(CURDIR)/$(TOOLS)/nats-server

.PHONY: up test tools lint doc deny audit bench clean

up: tools ## builds tocsin, and runs it with a nats-server of its own, data in ./tocsin-data
	@echo "make: building tocsin (release)"
	@cargo build --release --locked
	@exec target/release/tocsin up --data $(DATA)

test: tools ## every test, against real nats-servers
	cargo test --locked

tools: ## nats-server, from TOCSIN_NATS_SERVER, PATH, the official release, or source
	@.ci/nats-server $(TOOLS)

lint: ## format and lints
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

doc: ## the documentation of the code
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

deny: ## bans, licences and sources of everything that is built in
	@.ci/cargo-deny $(TOOLS)
	$(TOOLS)/bin/cargo-deny --locked check bans licenses sources

audit: ## known vulnerabilities; fetches the advisory database
	@.ci/cargo-deny $(TOOLS)
	$(TOOLS)/bin/cargo-deny --locked check advisories

bench: tools ## drain of a preloaded stream beside a bare client (BENCH_MESSAGES, BENCH_ROUNDS), and the store
	cargo bench --locked --bench pipeline
	cargo bench --locked --bench store

clean:
	cargo clean
