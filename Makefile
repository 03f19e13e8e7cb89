# Everything below needs git, make and Python 3.11 or later, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-slow fuzz lint format docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or later is needed: make PYTHON=python3.12' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]" --group dev
	touch $@

demo: install
	$(BIN)/botvision demo

test: install
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow

# 20,000 examples of every fuzz target, or FUZZ_EXAMPLES; hours.
fuzz: install
	$(BIN)/python -m pytest tests/fuzz --hypothesis-profile=fuzz

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site is built into site/ and opens without a network connection.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache
