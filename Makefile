# The two commands of the README, demo and test, do all the set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo

.PHONY: demo test install lint bench clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp per extra, so that `demo`, `test` and `install` compose.
$(VENV)/.stamp-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@

demo: $(VENV)/.stamp-slides $(VENV)/.stamp-report
	$(BIN)/histoflow demo --out $(OUT)

test: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

install: $(VENV)/.stamp-slides $(VENV)/.stamp-hvg $(VENV)/.stamp-encoders $(VENV)/.stamp-report $(VENV)/.stamp-dev

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/mypy

bench: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest benchmarks

clean:
	rm -rf $(VENV) $(OUT)
