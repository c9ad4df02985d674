# `make demo` and `make test` each work as the first command on a fresh clone.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin

.PHONY: demo test lint bench corpus damage chaos memory clean

demo: $(READY)  ## run the real job on a short real video and print the first rows
	$(BIN)/python -m examples.demo demo

test: lint  ## everything CI runs
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## figures for docs/performance.md and docs/accuracy.md
	$(BIN)/python -m benchmarks.limit
	$(BIN)/python -m benchmarks.dispatch
	$(BIN)/python -m benchmarks.decoding
	$(BIN)/python -m benchmarks.accuracy

# docs/reliability.md: what these prove. Each takes from a minute to an hour and more.
corpus: $(READY)  ## every kind of bad input in docs/inputs.md
	$(BIN)/python -m pytest tests/e2e/test_corpus.py tests/e2e/test_hostile.py

damage: $(READY)  ## videos cut and flipped at 1,000 places each, 2,500 bits flipped in published files, repairs killed
	POSEJOB_DAMAGE_EXAMPLES=1000 $(BIN)/python -m pytest tests/e2e/test_damaged_media.py
	POSEJOB_TEST_FLIPS=2500 POSEJOB_TEST_KILLS=60 $(BIN)/python -m pytest tests/e2e/test_repair.py

chaos: $(READY)  ## a kill at every step of the commit path, then 500 runs with random kills, on a real Ray
	$(BIN)/python -m tests.chaos.soak --runs 500

memory: $(READY)  ## peak memory for one hour of 1080p against four minutes
	$(BIN)/python -m benchmarks.memory

clean:
	rm -rf $(VENV) demo build dist *.egg-info

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
