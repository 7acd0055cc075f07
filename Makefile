# make train [ARGS="env=hopper seed=3"]     trains
# make test                                 runs every check
# make quick                                runs those that take no more than a moment, and one training
# make bench [ARGS="--workloads B C"]       measures speed beside other systems
# make docs                                 builds the documentation site into build/site, warnings as errors
# They install what they need first.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
ARGS ?=

.PHONY: train test quick lint format bench docs clean
.DEFAULT_GOAL := test

train: $(STAMP)
	$(VENV)/bin/rlexp-train $(ARGS)

test: lint
	$(VENV)/bin/pytest -n 3 --dist loadgroup $(ARGS)

quick: $(STAMP)
	$(VENV)/bin/pytest -n 3 --dist loadgroup -m "not (kill or wheel or slow)" $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet --editable '.[bench]'
	$(VENV)/bin/python scripts/benchmark.py $(ARGS)

docs: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict $(ARGS)

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
