# make demo: the whole pipeline on a small real data set; writes runs/demo/report.html
# make test: lint, types and tests
# Both make .venv first if it is missing. A second run reuses it; nothing is fetched after the install.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
CONSTRAINTS ?= constraints.txt

.PHONY: demo test lint types tests test-slow clean

$(VENV)/installed: setup.cfg pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/ko-en-clip demo

test: lint types tests

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy src/ko_en_clip conversion

tests: $(VENV)/installed
	$(BIN)/python -m pytest -n $(JOBS)

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) .venv-lowest build *.egg-info
