# Two commands: `make demo` and `make test`. Each makes .venv if it is missing, builds, and runs.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRITON_PINNED := .cache/triton-3.6.0
SOURCES := $(shell find csrc -type f) CMakeLists.txt vdiff_fast/_build.py
CXX_FILES = $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'gpu_emulator/*.h' 'gpu_emulator/*.cpp' 'gpu_emulator/*.cu')
PYTEST := $(BIN)/python -m pytest

.PHONY: demo captions test emulate lint format bench bench-smoke wheel gpu-check docs site docs-check clean

demo: $(VENV)/.built
	$(BIN)/vdiff-fast demo --out out

# From captions to clips: trains a codec, a text encoder and a transformer on digits that move, and reads 40 prompts.
captions: $(VENV)/.built-test
	$(BIN)/python -m tools.captions --out out/captions

test: $(VENV)/.built-test $(TRITON_PINNED)/.ready
	$(BIN)/python -m gpu_emulator
	$(PYTEST) -q -n 2 --dist worksteal

# Every op's contract with its compiled kernels, in full: hours on two cores, so no part of `make test`.
emulate: $(VENV)/.built-test $(TRITON_PINNED)/.ready
	$(BIN)/python -m tests.emulated cuda
	$(BIN)/python -m tests.emulated triton
	PYTHONPATH=$(TRITON_PINNED) $(BIN)/python -m tests.emulated triton

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/python tools/write_ops_stub.py
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(VENV)/.built-test
	$(BIN)/vdiff-fast bench

bench-smoke: $(VENV)/.built-test
	$(PYTEST) benchmarks --benchmark-only -q -k cpu_smoke

# One wheel for every Python and torch, in dist/; `tools/test_wheel.py` tries it in a fresh environment.
wheel: $(VENV)/.dev
	$(BIN)/python tools/make_wheel.py

# Everything a GPU is needed for, with the Python that is active: no virtual environment, no network.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check

# The pages and tables that are written from results and predicates.
docs: $(VENV)/.built-test
	$(BIN)/python -m benchmarks.docs

# The documentation as a site; `python -m http.server -d site` serves it, with its search.
site: $(VENV)/.built-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

# The site without a warning, its examples and its commands.
docs-check: $(VENV)/.built-test
	$(PYTEST) -q tests/docs tests/bench/test_docs.py

clean:
	rm -rf build dist out site *.egg-info vdiff_fast/_lib

# The libraries are built by .built, which shows how far it is, and not within pip.
PIP_INSTALL := VDIFF_FAST_NATIVE=0 $(BIN)/python -m pip install -q

# --- set-up: each stamp is made once -------------------------------------------------------------------------------
# An active Python that has torch >= 2.11 lends it to .venv; else torch 2.13.0 is installed.
$(VENV)/.python:
	$(PYTHON) tools/make_venv.py $(VENV)
	$(BIN)/python -m pip install -q 'setuptools>=77' wheel cmake ninja
	touch $@

$(VENV)/.runtime: $(VENV)/.python pyproject.toml
	$(PIP_INSTALL) --no-build-isolation -e '.[all]'
	touch $@

$(VENV)/.test: $(VENV)/.runtime
	$(PIP_INSTALL) --no-build-isolation -e '.[all,test]'
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP_INSTALL) --no-build-isolation -e '.[all,dev]'
	touch $@

$(VENV)/.built: $(SOURCES) | $(VENV)/.runtime
	$(BIN)/python vdiff_fast/_build.py
	touch $@

# The tests run every instruction set that this CPU has; CUDA for the tests is compiled while they run.
$(VENV)/.built-test: $(SOURCES) | $(VENV)/.test
	VDIFF_FAST_ISAS=cpu $(BIN)/python vdiff_fast/_build.py
	touch $(VENV)/.built $@

# The Triton that the supported GPU machines have; the newest is in .venv.
$(TRITON_PINNED)/.ready: | $(VENV)/.test
	$(BIN)/python -m pip install -q --no-deps --target $(TRITON_PINNED) triton==3.6.0
	touch $@
