# Everything happens in .venv; `make install` fills it, and every other target calls it first.
#
#   make install               torch for the CPU
#   make install TORCH=cuda    torch with CUDA
#   make install TORCH_INDEX=URL    torch from the package index at URL; everything else from pip's own

PYTHON ?= python3.11
# Asked for once, it is remembered: `make test` after `make install TORCH=cuda` keeps CUDA.
TORCH ?= $(or $(shell cat .venv/torch 2>/dev/null),cpu)
TORCH_INDEX ?=
# Broker tests and benchmarks run on a real Kafka too when KAFKA_HOME names a directory with its libs/*.jar.
KAFKA_HOME ?= $(abspath $(wildcard ../shared/kafka))
ifneq ($(KAFKA_HOME),)
export KAFKA_HOME
endif

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
STAMP := .venv/installed-$(TORCH)
BENCHMARKS := throughput latency history restore training
# Test files at once: much of a broker test is waiting for others. `make test JOBS=0` runs them in one process.
JOBS ?= 2
# What `make quality` replays: ml-100k (downloaded once), or any table as `recstream replay` takes it.
DATA ?= ml-100k

# CUDA builds carry no +cpu in their version, CPU builds do, except on systems where there is only one kind.
CPU_TORCH = $(PIP) 'torch==2.13.0+cpu' 2>/dev/null || $(PIP) 'torch==2.13.*'
CUDA_TORCH = $(PIP) 'torch==2.13.*,!=2.13.0+cpu'

.PHONY: help install tools demo test lint format bench quality clean
.DELETE_ON_ERROR:

help:  ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1	\2/p' Makefile | expand -t 20

install: $(STAMP)  ## create .venv with everything in it; a second run costs nothing

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo 'Python 3.11 is needed: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@test -x $(BIN)/python || { echo 'creating .venv'; $(PYTHON) -m venv .venv; }
	@echo 'installing torch ($(TORCH))'
ifneq ($(TORCH_INDEX),)
	@$(PIP) --index-url '$(TORCH_INDEX)' 'torch==2.13.*'
else ifeq ($(TORCH),cuda)
	@$(CUDA_TORCH)
else
	@$(CPU_TORCH)
endif
	@echo 'installing recstream'
	@$(PIP) -e '.[dev]'
	@echo 'compiling the numeric kernels'
	@$(BIN)/python -m streams.warmup
	@rm -f .venv/installed-*
	@printf '%s' '$(TORCH)' > .venv/torch
	@touch $@

# Not in .venv: Debian's packages, as root. Tests skip with a reason what they need and do not find (kubectl or kustomize
# come from elsewhere).
tools:  ## Prometheus and Chromium for the tests of alerts, dashboards and the live page (Debian; as root)
	apt-get update -q && apt-get install -y -q --no-install-recommends prometheus chromium

demo: install  ## broker, worker, model and live recommendations on MovieLens-100K (ARGS="--events 20000 --json")
	@$(BIN)/recstream demo $(ARGS)

test: install  ## the whole test suite (ARGS="-k replay")
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: install  ## ruff, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: install  ## let ruff format and fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: install  ## every benchmark; figures and plots go to docs/benchmarks (ARGS="--json")
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done

quality: install  ## hit rates before learning: in-process, then the running system (DATA=events.csv ARGS="--json")
	@$(BIN)/python -m benchmarks.prequential $(DATA) $(ARGS)
	@$(BIN)/python -m benchmarks.live $(DATA) --rate 1000 $(ARGS)

clean:  ## remove .venv and caches; data/ stays
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
