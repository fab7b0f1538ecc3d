# Each command does its own set-up: a virtual environment in .venv with pinned packages.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python

# One worker more than two cores: now and then one waits for a browser or for another process.
PYTEST := $(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: train demo test test-fast faults style setup format clean

train: setup  ## contrastive refinement and safety SFT of SmolLM2-135M, measured (ARGS="--seed 1 --run runs/second")
	$(PY) recipes/smollm2_135m.py $(ARGS)

demo: setup  ## the newest run in the browser, or the stock model (ARGS="--run runs/second --port 7861")
	$(PY) app.py $(ARGS)

test: style  ## style, types, all tests (ARGS="-k losses")
	$(PYTEST) $(ARGS)

test-fast: style  ## style, types, the tests that are not marked slow
	$(PYTEST) -m "not slow" $(ARGS)

faults: setup  ## kills, full disks, damaged files, little memory, generated inputs: about half an hour (ARGS="--seed 1")
	$(PY) -m tests.faults $(ARGS)

style: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dcr-lite needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,demo]'
	touch $@

format: setup  ## put the code into its form
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
