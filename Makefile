# make demo   watch neurons learn          make test   lint, build, the tests that this commit draws (12 minutes on two cores)
# make bench  the table of ratios          make guard  has a step become slower than committed?
# make test-all   the whole suite (an hour)      make test-slice   of what make test leaves out, as much as ten minutes hold
# make sanitized  the CUDA kernels, run on the CPU, under g++'s sanitizers
# make kernels  what the GPU's kernels compile to, and predictions (no GPU needed)     make gpu  test and time them on one
# make wheel  one wheel in dist/ for every torch >= 2.11
# Everything happens in .venv, which is made when it is missing. PYTHON=python3.12 chooses the interpreter, TORCH=torch==2.11.0
# the torch of a new .venv, HEBBKERN_BUILD=none, cpu or cuda what is compiled (setup.py), ARGS="..." the arguments.

PYTHON ?= python3
TORCH ?= torch>=2.11

# Kernels compile while pip installs what only the tests need.
MAKEFLAGS += --jobs=3

# The whole suite and the report want the CUDA kernels for every GPU, wherever nvcc is; everything else for the GPU that is
# here, and without one leaves them out (setup.py says so) unless HEBBKERN_BUILD=cuda or TORCH_CUDA_ARCH_LIST is given.
ifneq (,$(filter test-all kernels,$(MAKECMDGOALS)))
export HEBBKERN_BUILD ?= $(if $(shell command -v nvcc),cuda,auto)
else ifeq (,$(filter wheel one-wheel,$(MAKECMDGOALS))$(TORCH_CUDA_ARCH_LIST))
export TORCH_CUDA_ARCH_LIST := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | head -n 1)
endif
export HEBBKERN_BUILD ?= auto

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --no-compile
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses=8 --dist=worksteal --durations=20
CSRC := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')
BUILT := .venv/built-$(shell echo $(HEBBKERN_BUILD) '$(TORCH_CUDA_ARCH_LIST)' | tr -c 'a-z0-9.\n' _)
EMULATED := .venv/emulated
EMULATION := $(wildcard python_tests/cudaemu/*)

.PHONY: demo test test-all test-slice sanitized one-wheel lint format bench guard kernels gpu doctor wheel clean
.DELETE_ON_ERROR:

demo: .venv/has-demo $(BUILT)
	$(BIN)/hebbkern demo $(ARGS)

# With nvcc a warning fails, spilled registers and local memory among them; without it nothing reads this.
test test-all test-slice: export NVCC_APPEND_FLAGS ?= -Werror all-warnings -Xptxas -warn-spills,-warn-lmem-usage

# ARGS="--seed=SEED" draws other tests, ARGS="-k cosine" takes those of these by their names.
test: lint $(BUILT) $(EMULATED)
	$(PYTEST) $(ARGS)

test-all: lint $(BUILT) $(EMULATED)
	$(PYTEST) --all $(ARGS)

test-slice: .venv/has-dev $(BUILT) $(EMULATED)
	$(PYTEST) --slice=10m $(ARGS)

# The CUDA kernels' tests once more under the address and the thread sanitizer, which find what a wrong sum does not show.
sanitized: .venv/has-dev $(EMULATED)
	$(BIN)/python python_tests/helpers/cuda_sanitized.py address $(ARGS)
	$(BIN)/python python_tests/helpers/cuda_sanitized.py thread $(ARGS)

# The test of one wheel under several torches, failing where make test would skip it for want of a second torch.
one-wheel: .venv/has-dev
	$(BIN)/python python_tests/helpers/one_wheel_many_torches.py $(ARGS)

lint: .venv/has-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CSRC) $(EMULATION)
	$(BIN)/pyright

format: .venv/has-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC) $(EMULATION)

bench: .venv/has-bench $(BUILT)
	$(BIN)/hebbkern bench $(ARGS)

guard: .venv/has-demo $(BUILT)
	$(BIN)/python bench/guard.py $(ARGS)

kernels: .venv/has-dev $(BUILT) $(EMULATED)
	$(BIN)/python -m bench.gpu_report $(ARGS)

gpu: .venv/has-dev $(BUILT)
	$(BIN)/python bench/gpu.py $(ARGS)

doctor: .venv/has-demo $(BUILT)
	$(BIN)/hebbkern doctor $(ARGS)

wheel: .venv/has-torch
	rm -rf build/lib* build/bdist* dist
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation -w dist .

clean:
	rm -rf build dist *.egg-info hebbkern/_*.so .venv/built-* $(EMULATED) .pytest_cache .ruff_cache .hypothesis .benchmarks

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch is large and comes once. --no-compile: Python compiles what it imports, a small part of what is installed.
.venv/has-torch: | .venv/bin/python
	@echo "Installing $(TORCH) into .venv ..."
	$(PIP) "$(TORCH)" numpy "setuptools>=77" wheel ninja
	touch $@

# One set of requirements a target (the extras of pyproject.toml); that of dev holds the others.
.venv/has-%: pyproject.toml .venv/has-torch
	@echo "Installing the packages of [$*] into .venv ..."
	HEBBKERN_BUILD=none $(PIP) --no-build-isolation -e ".[$*]" "$(TORCH)"
	touch $@ $(if $(filter dev,$*),.venv/has-demo .venv/has-bench)

# Any torch will do: the kernels are compiled against it once, and again when a source changes.
$(BUILT): setup.py $(CSRC) | .venv/has-torch
	rm -f .venv/built-* hebbkern/_*.so
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

# The CUDA kernels compiled for the CPU, to be tested without a GPU; only what has changed is compiled, by ccache where it
# is installed, as torch's own build of $(BUILT) does.
ifneq (,$(shell command -v ccache))
$(EMULATED): export CCACHE_SLOPPINESS := pch_defines,time_macros
$(EMULATED): export CXX := ccache $(CXX)
endif
$(EMULATED): python_tests/helpers/cuda_host.py $(EMULATION) $(CSRC) | .venv/has-torch
	$(BIN)/python python_tests/helpers/cuda_host.py
	touch $@
