# The two commands of the README, demo and test, do all the set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo

.PHONY: demo test install lint bench faults fuzz docs api licences dist clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp per extra, so that `demo`, `test` and `install` compose.
$(VENV)/.stamp-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@

demo: $(VENV)/.stamp-slides $(VENV)/.stamp-report
	$(BIN)/histoflow demo --out $(OUT)

test: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

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
	$(BIN)/python .ci/licences.py dist/sbom.json

licences: $(VENV)/.stamp-dev
	$(BIN)/python .ci/licences.py

clean:
	rm -rf $(VENV) $(OUT) site dist
