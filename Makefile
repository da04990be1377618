# make demo: the whole pipeline on a small real data set; writes runs/demo/report.html
# make test: lint, types and tests
# Both make .venv first if it is missing. A second run reuses it and fetches nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
CONSTRAINTS ?= constraints.txt

.PHONY: demo test lint types tests transformers-tests test-slow test-457 clean

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

tests: $(VENV)/installed transformers-tests
	$(BIN)/python -m pytest -n $(JOBS)

transformers-tests: $(VENV)/transformers-tests/tests/__init__.py

# transformers' own common tests, for tests/contract: the source package of the installed version has them, not the wheel.
$(VENV)/transformers-tests/tests/__init__.py: $(VENV)/installed
	rm -rf $(VENV)/transformers-tests
	version=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("transformers"))') && \
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--no-binary transformers --dest $(VENV)/transformers-tests "transformers==$$version" && \
	tar -xzf $(VENV)/transformers-tests/transformers-$$version.tar.gz -C $(VENV)/transformers-tests \
		--strip-components=1 transformers-$$version/tests
	rm $(VENV)/transformers-tests/transformers-*.tar.gz
	touch $@

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

# What the package writes, read by the transformers before 5, in an environment that does not have the package.
test-457: $(VENV)/installed .venv-457/installed
	$(BIN)/python -m pytest -m slow tests/test_transformers_457.py

.venv-457/installed: constraints-457.txt
	test -x .venv-457/bin/python || $(PYTHON) -m venv .venv-457
	.venv-457/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-457.txt \
		transformers torch pillow numpy
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest .venv-457 build *.egg-info
