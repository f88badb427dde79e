# Two commands on a bare machine: make demo, make test. Both set up .venv themselves. make gpu needs no .venv: a Python with
# numpy (and, for the comparisons, torch and onnx), an NVIDIA driver, g++, and nvcc or NVRTC.
PYTHON ?= python3
# The CPU build of PyTorch is enough for the tests; override to use your own: make test TORCH="torch"
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml $(shell find crispseg/plugins -name '*.cpp' -o -name '*.h' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh' -o -name '*.map' -o -name CMakeLists.txt)

.PHONY: demo test lint bench gpu clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed  ## a street clip through the shipped bundle: demo/out
	$(BIN)/python demo/run.py

test: $(VENV)/installed-dev  ## the test suite
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/installed-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed-dev  ## every benchmark, results under benchmarks/out
	$(BIN)/python benchmarks/all.py

gpu:  ## checks and benchmark on an NVIDIA GPU, result under benchmarks/gpu/results; ARGS="--minutes 5" and the like
	$(PYTHON) benchmarks/gpu/run.py $(ARGS)

clean:
	rm -rf $(VENV) build demo/out benchmarks/out .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install -q -e ".[onnxruntime]"
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -e ".[onnxruntime,export,dev]"
	touch $@
