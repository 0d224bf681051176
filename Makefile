# make demo   watch neurons learn          make test   lint, build, all tests
# make bench  the table of ratios          make guard  has a step become slower than committed?
# make sanitized  the CUDA kernels, run on the CPU, under g++'s sanitizers
# make kernels  what the GPU's kernels compile to, and predictions (no GPU needed)     make gpu  test and time them on one
# make wheel  one wheel in dist/ for every torch >= 2.11
# Everything happens in .venv, which is made when it is missing. PYTHON=python3.12 chooses the interpreter.

PYTHON ?= python3
export HEBBKERN_BUILD ?= auto
BIN := .venv/bin
CSRC := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')
BUILT := .venv/built-$(HEBBKERN_BUILD)
EMULATED := .venv/emulated
EMULATION := $(wildcard python_tests/cudaemu/*)

.PHONY: demo test sanitized one-wheel lint format bench guard kernels gpu doctor wheel clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

demo: .venv/has-demo $(BUILT)
	$(BIN)/hebbkern demo $(ARGS)

# With nvcc a warning fails, spilled registers and local memory among them; without it nothing reads this.
test: export NVCC_APPEND_FLAGS ?= -Werror all-warnings -Xptxas -warn-spills,-warn-lmem-usage
# Interpreted and emulated kernels use one processor each; what times or counts threads must have them all.
test: lint $(BUILT) $(EMULATED)
	$(BIN)/python -m pytest -k "not (triton or test_cuda or cuda-host)" $(ARGS)
	$(BIN)/python -m pytest -k "triton or test_cuda or cuda-host" -n auto $(ARGS)

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

format: .venv/has-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC) $(EMULATION)

bench: .venv/has-bench $(BUILT)
	$(BIN)/hebbkern bench $(ARGS)

guard: $(BUILT)
	$(BIN)/python bench/guard.py $(ARGS)

kernels: .venv/has-dev $(BUILT) $(EMULATED)
	$(BIN)/python -m bench.gpu_report $(ARGS)

gpu: .venv/has-dev $(BUILT)
	$(BIN)/python bench/gpu.py $(ARGS)

doctor: .venv/has-demo $(BUILT)
	$(BIN)/hebbkern doctor $(ARGS)

wheel: .venv/has-demo
	rm -rf build/lib* build/bdist* dist
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation -w dist .

clean:
	rm -rf build dist *.egg-info hebbkern/_*.so .venv/built-* $(EMULATED) .pytest_cache .ruff_cache .hypothesis .benchmarks

.venv/bin/python:
	$(PYTHON) -m venv .venv

# One set of requirements a target (the extras of pyproject.toml); torch is large, and comes once.
.venv/has-%: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install "setuptools>=77" wheel ninja
	HEBBKERN_BUILD=none $(BIN)/python -m pip install --no-build-isolation -e ".[$*]"
	touch $@

# After any of these rules torch is there; the kernels are compiled against it, and again when a source changes.
$(BUILT): setup.py $(CSRC) | .venv/has-demo
	rm -f .venv/built-* hebbkern/_*.so
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

# The CUDA kernels compiled for the CPU, to be tested without a GPU; only what has changed is compiled.
$(EMULATED): python_tests/helpers/cuda_host.py $(EMULATION) $(CSRC) | .venv/has-dev
	$(BIN)/python python_tests/helpers/cuda_host.py
	touch $@
