# Two commands on a fresh machine with git, make and Python >= 3.11: `make demo`, `make test`.
# Each bootstraps .venv by itself from requirements.lock; nothing is installed outside this folder.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= demo
SEED ?= 0

# No telemetry: without a network it only slows the first call down.
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo skill test test-slow faults check format lock bench clean

help:  ## list what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(READY)  ## idealised sea -> prepare -> train -> evaluate -> detect, with a report (OUT=demo SEED=0)
	@$(BIN)/python -m flows.demo --out $(OUT) --seed $(SEED)

skill: $(READY)  ## the benchmark, hours the first time, resumable (OUT=skill; SMALL=1: a tiny one)
ifdef SMALL
	@$(BIN)/python -m medicane skill --study config/skill_small.yaml --out $(or $(filter-out demo,$(OUT)),skill_small)
else
	@$(BIN)/python -m medicane skill --out $(or $(filter-out demo,$(OUT)),skill) --page docs/skill.md
endif

# A file stays on one worker: its servers and trained projects are made once.
test: $(READY)  ## the tests, without the slow ones
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

# Three at a time: much of it waits for servers. In the order of collection, the longest files first.
test-slow: $(READY)  ## the slow tests alone: real servers, killed runs, the demo
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m slow

# What was killed is noted in docs/reliability_kills.jsonl, from which docs/reliability.md has its table.
faults: $(READY)  ## sixty kills, full disks, a lost server, jumping clocks (RESUME=1 goes on with the kills)
	@$(if $(RESUME),,rm -f docs/reliability_kills.jsonl)
	FAULTS_KILLS=60 FAULTS_RECORD=docs/reliability_kills.jsonl \
	  $(BIN)/python -m pytest -q -n 2 tests/faults
	@$(BIN)/python -m tests.faults.record

check: $(READY)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## format the code and mend what lint can mend
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format .

bench: $(READY)  ## every speed claim, measured here: docs/performance.md (SMALL=1: in bench_small)
	@$(BIN)/python -m benchmarks $(if $(SMALL),--small --out bench_small/performance)

lock: $(READY)  ## refresh requirements.lock: exact versions, hashes, no addresses
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --generate-hashes --no-header \
	  --no-annotate --upgrade --output-file requirements.lock

clean:  ## remove the environment, caches and the demo
	rm -rf $(VENV) $(OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

# --no-deps: the lock is complete, and pip would refuse the extra of `sqlalchemy[asyncio]`.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python >= 3.11 is needed; found $$($(PYTHON) --version). Set PYTHON=…" >&2; exit 2; }
	@echo "Setting up $(VENV) (once, a few minutes) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --quiet --disable-pip-version-check install --no-deps --require-hashes \
	  -r requirements.lock
	@$(BIN)/python -m pip --quiet --disable-pip-version-check install --no-deps --no-build-isolation \
	  --editable .
	@touch $@
