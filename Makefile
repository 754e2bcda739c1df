# make demo and make test are all that a fresh machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
STAMP := $(VENV)/.installed
OUT ?= runs/demo
SEED ?= 0
WORKERS ?= 2

.PHONY: install demo test test-all test-oldest wheel lint docs clean

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

# the oldest releases that pyproject.toml allows, which have wheels for Python 3.11
test-oldest:
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[dev]'
	$(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

wheel:
	.ci/wheel dist

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) $(OLDEST) dist site runs lightning_logs .pytest_cache .mypy_cache .ruff_cache
