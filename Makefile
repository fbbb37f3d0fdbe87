# The front door. `make` alone says what there is.
PYTHON ?= python3
CARGO ?= cargo
SETUP = $(PYTHON) scripts/setup.py --quiet
export PYTHON CARGO

.DEFAULT_GOAL := help
.PHONY: help setup verify build demo demo-rlhf test test-scripts test-cuda interop bench fmt lint clean

help:
	@echo 'make setup      fetch libtorch once per machine (540 MB), lay the link .libtorch to it'
	@echo 'make demo       set-up, build, and the quickstart recipe: a real fine-tuning in a few minutes'
	@echo 'make demo-rlhf  SFT, a reward model, PPO and DPO on a small model made from nothing, in ten minutes'
	@echo 'make build      both programs, target/release/levain and levain-worker'
	@echo 'make test       formatting, lints, all tests (needs no network after set-up)'
	@echo 'make interop    our files with the real Python packages, and theirs with ours (5 GB, once)'
	@echo 'make test-cuda  the same tests on an NVIDIA GPU (not run so far)'
	@echo 'make bench      the list of benchmarks; make bench-NAME runs one'
	@echo 'make lint       formatting and lints only;  make fmt  formats'
	@echo 'make verify     hash the fetched libtorch again;  make clean  remove what was built'
	@echo 'More: docs/setup.md. Without libtorch: cargo build --release --no-default-features'

setup:
	@$(PYTHON) scripts/setup.py

verify:
	@$(PYTHON) scripts/setup.py verify

build:
	@$(SETUP)
	$(CARGO) build --release

demo:
	@$(PYTHON) scripts/demo.py

demo-rlhf: build
	target/release/levain run recipes/sentiment-rlhf.yaml

# Lints and tests share the release profile, so that libtorch's C++ interface is compiled once.
lint:
	@$(SETUP)
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

test-scripts:
	$(PYTHON) -m unittest discover --quiet --start-directory scripts/tests --top-level-directory scripts

test: test-scripts lint
	$(CARGO) test --release --workspace

# Not run so far: no GPU was at hand.
test-cuda:
	@LEVAIN_TORCH=cuda $(SETUP)
	LEVAIN_DEVICE=cuda $(CARGO) test --release --workspace

# With the examples, so that cargo's features are those of `make test` and nothing is compiled twice.
interop:
	@$(SETUP)
	$(CARGO) build --release --workspace --bins --examples
	@$(PYTHON) scripts/interop.py

bench:
	@$(PYTHON) scripts/bench.py

bench-%:
	@$(PYTHON) scripts/bench.py $*

fmt:
	$(CARGO) fmt --all

clean:
	$(CARGO) clean
