# make up           everything on this machine: the daemon, its store and a broker of its own
# make demo         the same, and a small fleet's day in ten seconds
# make static       the program as one file without libraries, for containers and any Linux
# make test         every test, against a real nats-server, and a real systemd; as root
# make evidence     the faults of every row of the README's table, within an hour; FULL=1 within two and a half, ROW=name one row, SEED=n its draws
# make protections  takes each protection of the code away in turn: a test must fail; ONLY=name some of them
# make lint         formatting, lints, documentation, and what the dependencies may be
# make audit        known vulnerabilities of the dependencies (needs the network)
# make doc          the documentation of the code
# make bench        the daemon beside bare clients, half an hour; draws the README's figures anew; ROW=name one row, ROUNDS=n, SCALE=0.1 to try it
# make fuzz         every fuzz target for SECONDS each, 60 without it
# make mutants      every small change of the protocol and of the bytes at rest, each of which a test must notice
# make pictures     the terminal pictures of the README, drawn anew

CARGO ?= cargo
# Where .ci/tools puts what is no crate; `cargo deny` is found in its bin.
TOOLS := $(CURDIR)/target/tools
STATIC_TARGET := $(shell uname -m)-unknown-linux-musl

.PHONY: up demo static test evidence protections lint audit doc bench fuzz mutants pictures tools

up: tools
	$(CARGO) build --release
	PATH="$(TOOLS):$$PATH" target/release/tocsin up

demo: tools
	$(CARGO) build --release
	PATH="$(TOOLS):$$PATH" target/release/tocsin up --demo

static:
	.ci/tools musl
	$(CARGO) build --release --locked --target $(STATIC_TARGET)

test: tools static
	.ci/tools docs
	.ci/tools systemd
	.ci/tools clock
	.ci/tools compose
	.ci/tools disks
	PATH="$(TOOLS):$$PATH" $(CARGO) test

evidence: tools
	.ci/tools clock
	.ci/tools disks
	.ci/tools fuzz
	FULL=$(FULL) ROW=$(ROW) SEED=$(SEED) PATH="$(TOOLS):$$PATH" $(CARGO) test --test evidence -- --ignored --exact --nocapture the_table

protections: tools
	.ci/tools clock
	.ci/tools disks
	ONLY="$(ONLY)" PATH="$(TOOLS):$$PATH" $(CARGO) test --test evidence -- --ignored --exact --nocapture nothing_protects_in_vain

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps
	.ci/tools cargo-deny
	PATH="$(TOOLS)/bin:$$PATH" $(CARGO) deny check bans licenses sources

audit:
	.ci/tools cargo-deny
	PATH="$(TOOLS)/bin:$$PATH" $(CARGO) deny check advisories

doc:
	$(CARGO) doc --no-deps

bench: tools
	ROW=$(ROW) ROUNDS=$(ROUNDS) SCALE=$(SCALE) PATH="$(TOOLS):$$PATH" $(CARGO) bench --bench limits

fuzz:
	.ci/tools fuzz
	tests/fuzz/run $(or $(SECONDS),60)

mutants:
	.ci/tools cargo-mutants
	tests/mutants/run

pictures: tools
	DRAW_PICTURES=1 PATH="$(TOOLS):$$PATH" $(CARGO) test --test it pictures::

tools:
	.ci/tools nats-server
