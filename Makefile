# `make demo` and `make test` do all of their own set-up on a fresh machine (Python 3.11+ and pip).
# A second run reuses what stands.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-slow serve stop worker lint format docs bench evidence clean

demo: $(READY)
	@paser demo

# JOBS: processes that share the tests.
JOBS ?= 2
test: $(READY)
	pytest -q -n $(JOBS) --durations 25 --durations-min 5
	$(MAKE) --no-print-directory lint

# What takes minutes or the real model.
test-slow: $(READY)
	pytest -q -m slow

# Prefect's server, deployments and workers on this machine; PASER_HOST and PASER_PORT say where it listens,
# POOLS which workers run here (cpu, gpu or both).
POOLS ?= cpu,gpu
serve: $(READY)
	@$(BIN)/python -m flows.serve start --pools $(POOLS)

stop: $(READY)
	@$(BIN)/python -m flows.serve stop

# A worker of another machine's server, which PREFECT_API_URL names: make worker POOL=gpu
POOL ?= gpu
worker: $(READY)
	@$(BIN)/python -m flows.serve worker --pool $(POOL)

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy

format: $(READY)
	ruff check --fix .
	ruff format .

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "PASER needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "setting up $(VENV) (some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev,flows,audit,tasks]'
	@touch $@

# The documentation as a site, in build/docs; a dead link, a dead anchor or a page without a place is an error.
docs: $(READY)
	@$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[docs]'
	@rm -rf docs/reference/modules build/docs
	@sphinx-build -q -W --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

# Benchmarks, about an hour and a half; NAME=scoring runs one. Needs PASER_BENCH_DATA.
bench: $(READY)
	@$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks $(NAME)

# The comparison of selectors, about a day on two cores; stopped, it goes on where it stopped. PART=baselines runs one
# part. Needs PASER_BENCH_DATA.
evidence: $(READY)
	$(BIN)/python -m benchmarks.evidence $(PART)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
