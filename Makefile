# `make` lists the targets. `make test ARGS="-k launcher"` hands ARGS to the program behind a target.

VENV := .venv
BIN := $(VENV)/bin
TINY := checkpoints/tiny
NATIVE := $(wildcard engine/qwen3_tts_engine/model/native/*.h engine/qwen3_tts_engine/model/native/*.cpp)
CPP := $(NATIVE) perf/products.cpp

# The first of these that is a Python we support and can make a virtual environment.
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.10; do \
	$$python -c 'import ensurepip, sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& echo $$python && break; done)

# Where to look for torch besides PyPI, whose Linux build brings CUDA along. Without a GPU, this saves 3 GB:
#   make setup TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-faults check serve serve-triton bench bench-full bench-codec bench-limit bench-products bench-serving bench-claims simulate bench-memory soak overload bench-overheads fmt fuzz tiny clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed $(VENV)/.server-checked $(TINY)/.made ## virtual environment, tritonserver, tiny checkpoints

demo: setup ## speak one utterance per task through the real server, into out/
	@exec $(BIN)/python perf/demo.py $(ARGS)

test: setup ## every test that needs no GPU, those against the real server included
	@exec $(BIN)/python -m pytest -m "not gpu and not slow" $(ARGS)

test-faults: setup ## break everything that runs, under load, and see it mend itself
	@exec $(BIN)/python -m pytest tests/faults $(ARGS)

check: $(VENV)/.installed ## format, lint, types, import contracts, bill of materials, known vulnerabilities
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@mkdir -p build
	$(BIN)/cyclonedx-py environment --validate --pyproject pyproject.toml --output-reproducible --of XML -o build/sbom.cdx.xml
	$(BIN)/python .ci/audit.py

fuzz: setup ## at least 100,000 inputs that nobody means well with, some 15 minutes
	@exec $(BIN)/python tests/fuzz/campaign.py $(ARGS)

serve: setup ## Triton on 8000, 8001 and 8002 and the gateway on 8080, until Ctrl-C
	@exec $(BIN)/python -m qwen3_tts_engine.launch.system $(ARGS)

serve-triton: setup ## Triton alone on 8000, 8001 and 8002, until Ctrl-C
	@exec $(BIN)/python -m qwen3_tts_engine.launch.launcher $(ARGS)

bench: setup ## the engine against upstream, report in perf/results/: under 6 minutes
	@exec $(BIN)/python perf/bench.py $(ARGS)

bench-full: setup ## every shape, dtype and batch, the codec alone, the machine's limit: under 25 minutes
	@exec $(BIN)/python perf/grid.py $(ARGS)

bench-codec: setup ## the streaming codec against windows of frames
	@exec $(BIN)/python perf/codec.py $(ARGS)

bench-limit: setup ## the engine against what the machine can do
	@exec $(BIN)/python perf/limit.py $(ARGS)

bench-products: setup ## ways to multiply by weights that no cache holds: some 3 minutes
	@exec $(BIN)/python perf/products.py $(ARGS)

bench-serving: setup ## through Triton: together, at random, and what it promises: some 12 minutes
	$(BIN)/python perf/load.py
	$(BIN)/python perf/arrivals.py
	$(BIN)/python perf/promises.py

bench-claims: setup ## what was claimed, and what the newest results say
	@exec $(BIN)/python perf/claims.py $(ARGS)

simulate: setup ## scheduling policies by simulation, report in perf/results/
	@exec $(BIN)/python perf/simulate.py $(ARGS)

bench-memory: setup ## memory over 1000 requests at the real server, report in perf/results/
	@exec $(BIN)/python perf/memory.py $(ARGS)

MINUTES := 30
soak: setup ## everything at once for MINUTES, every sample checked: leaks, lost chunks, wrong voices
	@exec $(BIN)/python perf/soak.py --minutes $(MINUTES) $(ARGS)

overload: setup ## callers at 1, 2 and 10 times the capacity: what gets done, who is turned away how
	@exec $(BIN)/python perf/overload.py $(ARGS)

bench-overheads: setup ## what ways of asking the real server cost, report in perf/results/
	@exec $(BIN)/python perf/overheads.py $(ARGS)

fmt: $(VENV)/.installed ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)
	$(BIN)/ruff check --fix .

tiny: $(TINY)/.made ## the tiny checkpoints that stand in for the published weights

clean: ## remove what was generated, except the virtual environment
	rm -rf checkpoints out .server .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist

$(VENV)/.installed: pyproject.toml constraints.txt hatch_build.py $(NATIVE)
	@test -n "$(PYTHON)" || { echo "no Python 3.10 to 3.12 with venv and ensurepip; on Debian: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the packages pinned in constraints.txt, some minutes the first time"
	$(BIN)/python -m pip install --quiet $(addprefix --extra-index-url ,$(TORCH_INDEX_URL)) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# A Python without a shared library of its own borrows the system's.
$(VENV)/.server-checked: $(VENV)/.installed
	@$(BIN)/python -m qwen3_tts_engine.launch.tritonserver .server \
		|| { .ci/install-debian-packages libpython3.$$($(BIN)/python -c 'import sys; print(sys.version_info.minor)') \
		&& $(BIN)/python -m qwen3_tts_engine.launch.tritonserver .server; }
	@touch $@

$(TINY)/.made: $(wildcard engine/qwen3_tts_engine/tiny/*.py) | $(VENV)/.installed
	$(BIN)/python -m qwen3_tts_engine.tiny $(TINY)
	@touch $@
