# SPDX-License-Identifier: Apache-2.0
# A fresh clone, Python 3.10 to 3.12 and make are all that these need:
#
#   make demo   a tiny model, a server with Semi-PD, some requests, a tidy stop
#   make test   the whole test suite
#   make soak   the stress tests, fifty times longer; a fleet of three instances
#   make lint   format, lint and types
#
# The environment is made once, in .venv; `make VENV=/path` uses another.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.10 || command -v python3)
BIN := $(VENV)/bin
READY := $(VENV)/.semi-pd-ready
MODEL := .demo/tiny-llama
SOURCES := $(wildcard python test benchmark examples scripts)

# Without compiled bytecode each import of SGLang takes twice as long: 25 s, on two cores.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: venv demo test test-light test-full soak lint clean

venv: $(READY)

$(READY): pyproject.toml sglang_semi_pd_overlay.pth
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --editable '.[test]'
	touch $@

$(MODEL)/config.json: scripts/make_tiny_model.py $(READY)
	$(BIN)/python scripts/make_tiny_model.py $(MODEL)

demo: $(MODEL)/config.json
	$(BIN)/python examples/semi_pd/demo.py --model-path $(MODEL)

test: lint test-light test-full

# Pure modules, with an empty package in SGLang's place: milliseconds instead of imports.
test-light: $(READY)
	SEMI_PD_LIGHT=1 $(BIN)/python -m pytest -m "not (upstream or server or gpu)"

test-full: $(READY)
	$(BIN)/python -m pytest -m "upstream or server or gpu"

soak: $(READY)
	$(BIN)/uv pip install --python $(BIN)/python --editable '.[test,fleet]' kubernetes-validate
	SEMI_PD_SOAK=1 SEMI_PD_LIGHT=1 $(BIN)/python -m pytest -m "not (upstream or server or gpu)"
	SEMI_PD_SOAK=1 $(BIN)/python -m pytest -m "upstream or server or gpu"

lint: $(READY)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy $(SOURCES)

clean:
	rm -rf $(VENV) .demo dist build
