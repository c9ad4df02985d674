# `make demo` and `make test` each work as the first command on a fresh clone.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

demo: $(READY)  ## run the real job on a short real video and print the first rows
	$(BIN)/python -m examples.demo demo

test: lint  ## everything CI runs
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## figures for docs/performance.md
	$(BIN)/python -m benchmarks.decoding
	$(BIN)/python -m benchmarks.accuracy

clean:
	rm -rf $(VENV) demo build dist *.egg-info

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
