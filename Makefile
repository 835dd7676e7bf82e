# Everything below works on a machine with Python 3.11 or newer and make: the servers come in a wheel.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
BIN := .venv/bin
PROCESSES ?= 3

# Some images forbid Python to keep what it has compiled; then every test process, and pytest in each of its processes,
# compiles all of it anew.
export PYTHONDONTWRITEBYTECODE =

.PHONY: setup demo test lint types bench bench-bootstrap test-matrix pins clean

setup: .venv/ready ## a virtual environment with cdc, its servers and its tools

# Without a C compiler the compiled core is left out; after a change of it, `make setup` builds it anew.
.venv/ready: requirements.txt requirements-dev.txt pyproject.toml setup.py $(wildcard cdc/*/*.pyx cdc/*/*.pxd)
	$(or $(PYTHON),$(error Python 3.11 or newer is needed)) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . && touch $@

demo: setup ## one source, three targets, a killed worker, and a comparison at the end
	$(BIN)/cdc demo $(ARGS)

test: lint types ## lint, types, import rules, and all tests; without the compiled core: CDC_UNCOMPILED=1 make test
	$(BIN)/pytest --quiet -n $(PROCESSES) $(ARGS)

lint: setup ## style, and which room imports which
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: setup ## mypy --strict
	$(BIN)/mypy

bench: setup ## cdc beside PostgreSQL's own subscription, on the same servers; a first look: make bench ARGS=--quick
	$(BIN)/python -m tests.bench $(ARGS)

bench-bootstrap: setup ## the initial load beside pg_dump and pg_restore, pgcopydb, and a subscription's copy
	$(BIN)/python -m tests.bench_bootstrap $(ARGS)

test-matrix: setup ## the tests against servers of 14 to 18; some of the pairs: make test-matrix PAIRS="14:18 18:14"
	$(BIN)/python -m tests.matrix $(PAIRS) -- -n $(PROCESSES) $(ARGS)

pins: ## requirements.txt and requirements-dev.txt anew, from the lower bounds
	.ci/pins $(or $(PYTHON),$(error Python 3.11 or newer is needed))

clean: ## what the others leave behind
	rm -rf .venv build dist *.egg-info cdc/*/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
