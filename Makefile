# Two commands to start: `make demo` and `make test`.  Both make .venv first, where it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo

.PHONY: demo test check format clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(VENV)/.ready  ## distil the embedded data set, and look at demo/demo.png
	$(BIN)/diffsel demo --out $(OUT)

test: $(VENV)/.ready  ## run all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.ready  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OUT)
