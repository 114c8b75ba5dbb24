# `make` or `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
# What `make lowest` runs.
TESTS ?= tests

.DEFAULT_GOAL := help
.PHONY: help extract test check lowest frameworks docs tables format clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## / - /'

$(VENV)/pip: Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; run make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

$(VENV)/installed: $(VENV)/pip pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/test-installed: $(VENV)/pip pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/installed

extract: $(VENV)/installed ## features and labels by the trained ResNet-20, features by ResNet-50 (random weights)
	$(BIN)/python -m resnet_jax.main --config=configs/cifar.py --job=extract --config.output_dir=features_cifar10
	$(BIN)/python -m resnet_jax.main --config=configs/cifar.py --job=predict
	$(BIN)/python -m resnet_jax.main --config=configs/resnet.py:50,weights=random --job=extract

check: $(VENV)/test-installed ## formatter check, linter, type check
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

test: check ## check, then the tests
	$(BIN)/python -m pytest

$(LOWEST)/installed: Makefile pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv==0.13.9
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python \
	  --resolution lowest-direct --editable '.[test]'
	@touch $@

# Old versions warn of what newer ones of their own dependencies deprecate.
lowest: $(LOWEST)/installed ## the tests, with the lowest versions allowed (TESTS=FILES: some)
	$(LOWEST)/bin/python -m pytest -W default $(TESTS)

frameworks: $(VENV)/test-installed ## tests against PyTorch (hundreds of megabytes to install)
	$(BIN)/python -m pip install --quiet --editable '.[frameworks]'
	$(BIN)/python -m pytest -m frameworks

docs: $(VENV)/pip pyproject.toml ## build the documentation, into site/
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python -m mkdocs build --strict --quiet

tables: $(VENV)/test-installed ## write the tables in README.md and docs/ again
	$(BIN)/python experiments/tables.py

format: $(VENV)/test-installed ## format and sort imports
	$(BIN)/ruff check --fix --select I
	$(BIN)/ruff format

clean: ## remove the virtual environments and caches
	rm -rf $(VENV) $(LOWEST) site .pytest_cache .mypy_cache .ruff_cache
