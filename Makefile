# Two commands to start: `make demo` and `make test`.  Both make .venv first, where it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
DOCS := .venv-docs
OUT ?= demo

.PHONY: demo test lowest docs check format clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(VENV)/.ready  ## distil the embedded data set, and look at demo/demo.png
	$(BIN)/diffsel demo --out $(OUT)

test: $(VENV)/.ready  ## run all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

lowest: $(LOWEST)/.ready  ## the tests with the lowest versions that pyproject.toml allows; warnings are no errors there
	$(LOWEST)/bin/python -m pytest -n 2 --dist loadfile -W ignore \
		tests/settings tests/data tests/scoring tests/test_golden.py tests/cli/test_app.py

$(LOWEST)/.ready: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[test]'
	touch $@

docs: $(DOCS)/.ready  ## the site, into site/; a link that leads nowhere is an error
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet

$(DOCS)/.ready: pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet 'mkdocs-material>=9.6' 'mkdocstrings-python>=2.0'
	touch $@

check: $(VENV)/.ready  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(LOWEST) $(DOCS) site $(OUT)
