# Each command works on a fresh clone: it makes .venv and installs into it
# what is missing, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: train test test-long lint bench clean
.DELETE_ON_ERROR:

$(INSTALLED): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[train,test,lint]'
	touch $@

train: $(INSTALLED)  ## the main job: train on the bundled digits
	$(BIN)/python -m examples.train $(ARGS)

test: $(INSTALLED)  ## the tests that every change must pass
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-long: $(INSTALLED)  ## those and the long ones
	$(BIN)/python -m pytest -n 2 -m "long or not long" $(ARGS)

lint: $(INSTALLED)  ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(INSTALLED)  ## time the ops on the devices that are here
	$(BIN)/python -m profiling.bench_matmul $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info
