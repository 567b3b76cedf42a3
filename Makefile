# make train   install into .venv and train the first experiment (about 8 minutes on 2 CPU cores)
# make test    install into .venv with the development tools and run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test lint clean

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

test: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
