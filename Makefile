# Each command works on a fresh clone: it makes .venv and installs into it
# what is missing, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# The tests of the library's own modules: they need none of the extras.
LIBRARY_TESTS := $(wildcard $(patsubst collective_mm/%.py,tests/test_%.py, \
  $(wildcard collective_mm/*.py))) \
  tests/test_dtypes.py tests/test_epilogue.py tests/test_explicit_axes.py \
  tests/test_transforms.py

.PHONY: train test test-long test-all lint bench docs clean
.DELETE_ON_ERROR:

$(INSTALLED): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[train,profile,flax,equinox,test,lint]'
	touch $@

train: $(INSTALLED)  ## the main job: train on the bundled digits
	$(BIN)/python -m examples.train $(ARGS)

test: $(INSTALLED)  ## the tests that every change must pass
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-long: $(INSTALLED)  ## those and the long ones
	$(BIN)/python -m pytest -n 2 -m "long or not long" $(ARGS)

test-all: test-3.12 test-3.13  ## the library's, there with the newest jax

test-3.%:
	@if ! python3.$* -c '' 2>/dev/null; then \
	  echo "python3.$* not found: skipped"; exit; \
	fi; \
	set -ex; test -x .venv-3.$*/bin/python || python3.$* -m venv .venv-3.$*; \
	.venv-3.$*/bin/python -m pip install --quiet --disable-pip-version-check \
	  --upgrade --upgrade-strategy eager --editable '.[test]'; \
	.venv-3.$*/bin/python -m pytest -n 2 $(LIBRARY_TESTS) $(ARGS)

lint: $(INSTALLED)  ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(INSTALLED)  ## time the ops here; ARGS=--simulate=v4 needs no TPU
	$(BIN)/python -m profiling.bench_matmul $(ARGS)

docs: $(INSTALLED)  ## the guides and the API reference, as a site in build/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-3.* build *.egg-info
