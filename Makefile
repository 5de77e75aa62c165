# `make demo` and `make test` work on a fresh machine with Python 3.11-3.13 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo nano lint test test-ray test-plain test-slow test-slow-ray test-slow-plain test-hosts update clean

help:
	@echo "make demo       footage to a served video on this machine (8 to 15 minutes on 2 cores)"
	@echo "make nano       train the nano base model again (up to 150 minutes on 2 cores; stop it and it goes on)"
	@echo "make test       lint, types and tests"
	@echo "make test-slow  the tests that kill, soak or take long"
	@echo "make test-hosts a cluster of hosts, of which some are cut off (as root, alone on the machine)"
	@echo "make lint       ruff, mypy and which way imports go"
	@echo "make update     resolve the dependencies anew into constraints.txt, and show what changed"
	@echo "make clean      remove the virtual environment and caches"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11-3.13 is needed, this is %s; set PYTHON=..." % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: install
	$(BIN)/python -m cluster.demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/python -m docs.configuration --check

# In the background of other work: at low priority. NANO="--device cuda" trains the transformer on a GPU.
nano: install
	nice -n 10 $(BIN)/python -m cinesynth.nano.build --out build/nano $(NANO)
	nice -n 10 $(BIN)/python -m benchmarks.nano --model build/nano/model --record build/nano

# Tests on the Ray cluster mostly wait for processes to start: the others run beside them.
test: lint
	$(MAKE) --no-print-directory --output-sync=target --jobs=2 test-ray test-plain

test-ray: install
	$(BIN)/python -m pytest -q -m 'ray and not slow'

test-plain: install
	$(BIN)/python -m pytest -q -m 'not ray and not slow'

# Beside most of those that share a cluster: those that need no Ray, those that start one of their own, and the others that
# share a cluster.
SHARED = slow and not beside and not own_ray and not hosts
SHARED_TOO = tests/cluster tests/data tests/generate tests/metrics

test-slow: install
	$(MAKE) --no-print-directory --output-sync=target --jobs=2 test-slow-ray test-slow-plain

test-slow-ray: install
	$(BIN)/python -m pytest -q -m '$(SHARED)' $(SHARED_TOO:%=--ignore=%)

test-slow-plain: install
	nice -n 10 $(BIN)/python -m pytest -q -m 'slow and beside'
	$(BIN)/python -m pytest -q -m 'slow and own_ray'
	$(BIN)/python -m pytest -q -m '$(SHARED)' $(SHARED_TOO)

# Several hosts on one machine, by network namespaces: for root, and with nothing else running.
test-hosts: install
	$(BIN)/python -m pytest -q -m hosts

# Needs the package index; then `make install`, the tests, and `python -m docs.licences`.
update: install
	$(BIN)/python .ci/update_constraints.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
