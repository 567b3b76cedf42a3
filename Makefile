# make train   install into .venv and train the first experiment (7 to 10 minutes on 2 CPU cores)
# make test    install into .venv with the development tools and run the tests
# make test-fast  those tests that start no process: some minutes, for use while working
# make test-thorough  those tests that `make test` leaves out: its promises at full breadth, as CI runs them
# make types   check the types of mmlm/
PYTHON ?= python3
VENV := .venv
# One process more than cores to test with: that of the SLURM tests mostly waits (two more were no faster). All tests of
# a file are run by one process, so that what a file starts (a cluster, a run to compare with) is started once. Not by
# --dist loadgroup: xdist 3.8 ignores groups under pytest 9.2.
JOBS = $(shell $(PYTHON) -c 'import os; print(os.cpu_count() + 1)')
BIN := $(VENV)/bin
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: train test test-fast test-thorough types lint clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One resolver call for everything, so that torch and torchvision match.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e ".[dev]"
	touch $@ $(VENV)/.installed

train: $(VENV)/.installed
	$(BIN)/python -m mmlm.train experiment=caption_base

test: types
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(PYTEST) -m "not thorough"

test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow and not thorough"

test-thorough: $(VENV)/.installed-dev
	$(PYTEST) -m thorough

types: $(VENV)/.installed-dev
	$(BIN)/python -m mypy

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
