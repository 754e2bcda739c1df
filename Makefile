# make demo and make test are all that a fresh machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= runs/demo
SEED ?= 0
WORKERS ?= 2

.PHONY: install demo test test-all lint docs clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: install
	$(BIN)/neuralgate demo --out $(OUT) --seed $(SEED)

test: install lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

test-all: install lint
	$(BIN)/python -m pytest --hypothesis-profile slow

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) site runs lightning_logs .pytest_cache .mypy_cache .ruff_cache
