# The two commands of the README, demo and test, do all the set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo
LOWEST := .venv-lowest
LOWEST_EXTRAS := slides hvg encoders report cluster
# Documentation and the tutorial need libraries of development, which ask for newer ones.
LOWEST_TESTS := tests --ignore tests/test_docs.py --ignore tests/test_tutorial.py
LOWEST_WARNINGS := $(foreach kind,Deprecation PendingDeprecation Future,-W ignore::$(kind)Warning)
comma := ,

.PHONY: demo test test-lowest install lint bench faults fuzz docs api changelog licences dist wheel-demo clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp per extra, so that `demo`, `test` and `install` compose.
$(VENV)/.stamp-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@

demo: $(VENV)/.stamp-slides $(VENV)/.stamp-report
	$(BIN)/histoflow demo --out $(OUT)

# Two workers on two cores, and one thread in each and in the commands that they start: more would wait for each other.
test: $(VENV)/.stamp-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

# The lowest versions that pyproject.toml allows of what histoflow needs, and the tests in an environment of them. torch and
# torchvision stay at the builds of constraints.txt, which are those at hand. Tests of libraries that only development needs
# say that they were skipped. Old versions announce what has changed since in newer ones of what they need: no errors here.
test-lowest: $(LOWEST)/.stamp
	$(LOWEST)/bin/python -m pytest -n 2 --dist worksteal $(LOWEST_WARNINGS) $(LOWEST_TESTS) $(PYTEST_ARGS)

# Some of the old versions need pkg_resources and do not say so; newer setuptools warn of it, the newest have it no more.
$(LOWEST)/.stamp: pyproject.toml constraints.txt
	rm -rf $(LOWEST)
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	(grep -E '^torch(vision)?==' constraints.txt; echo 'setuptools<80') > $(LOWEST)/held.txt
	$(LOWEST)/bin/uv pip compile pyproject.toml $(LOWEST_EXTRAS:%=--extra %) --resolution lowest-direct --quiet \
		--python $(LOWEST)/bin/python -c $(LOWEST)/held.txt --no-header --no-annotate -o $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/lowest.txt \
		-c $(LOWEST)/held.txt -e ".[$(subst $() ,$(comma),$(LOWEST_EXTRAS))]" pytest pytest-xdist hypothesis selenium setuptools
	@touch $@

install: $(VENV)/.stamp-slides $(VENV)/.stamp-hvg $(VENV)/.stamp-encoders $(VENV)/.stamp-report $(VENV)/.stamp-dev

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check src tests benchmarks faults fuzz docs
	$(BIN)/ruff format --check src tests benchmarks faults fuzz docs
	$(BIN)/mypy

# BENCH_ARGS=--quick takes about 20 minutes; a run that was cut is taken up.
bench: $(VENV)/.stamp-dev
	$(BIN)/python benchmarks $(BENCH_ARGS)

# Faults at random points of running commands; FAULTS="--seed 12" for the points of an earlier run.
faults: $(VENV)/.stamp-dev
	$(BIN)/python -m faults $(FAULTS)

# A million inputs in all, at least 20,000 of every reader; findings are kept in fuzz-findings/.
fuzz: $(VENV)/.stamp-dev
	$(BIN)/python -m fuzz --total --inputs 1000000 $(FUZZ_ARGS)

docs: $(VENV)/.stamp-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The snapshot of names and signatures, after a change that is meant.
api: $(VENV)/.stamp-dev
	$(BIN)/python -c "from tests.test_public_api import SNAPSHOT, api_text; SNAPSHOT.write_text(api_text())"

dist: $(VENV)/.stamp-dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python .ci/check_dist.py dist
	$(BIN)/python .ci/licences.py dist/sbom.json

# The demo of the wheel in an empty environment, and that of the checkout: equal figures.
wheel-demo: $(VENV)/.stamp-dev
	BIN=$(BIN) .ci/wheel.sh

# The notes in changes/ become the section of a release: make changelog VERSION=0.2.0
changelog: $(VENV)/.stamp-dev
	$(BIN)/towncrier build --yes --version $(VERSION)

licences: $(VENV)/.stamp-dev
	$(BIN)/python .ci/licences.py

clean:
	rm -rf $(VENV) $(LOWEST) $(OUT) site dist
