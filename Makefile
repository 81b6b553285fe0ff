# Everything needs only make and Python >= 3.11; the virtual environment in .venv is made on the way.
#
#   make install  install into .venv; then `. .venv/bin/activate`, and `gradatim` is there
#   make demo    train the ladder on the embedded corpus, compare its rungs, write runs/demo/report.html
#   make test    run the tests
#   make test-layouts    run everything of parallel training, the whole matrix of layouts too (some 20 minutes)
#   make lint    ruff and mypy
#   make docs    the documentation as a web site in build/site
#   make clean   remove the environment and what tools left behind (runs/ stays)

PYTHON ?= $(shell for candidate in python3.13 python3.12 python3.11 python3 python; do \
	$$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$candidate && break; \
	done)
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
# One thread a process: the tests' matrices are too small to gain from more. Two files at a time use two cores instead.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: install demo test test-layouts lint docs clean help
help:
	@sed -n 's/^#   //p' $(MAKEFILE_LIST)

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/gradatim demo

test: $(VENV)/.installed-test
	$(PYTEST) -n 2 --dist loadfile

test-layouts: $(VENV)/.installed-test
	$(PYTEST) tests/parallel -m "layouts or not layouts"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini

docs: $(VENV)/.installed
	$(INSTALL) -e '.[docs]'
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: a second call installs nothing, a changed dependency or pin installs again.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "gradatim needs Python >= 3.11 and found none; name one with make PYTHON=/path/to/python3"; exit 1; } >&2
	$(PYTHON) -m venv $(VENV) || { echo "could not make $(VENV): on Debian and Ubuntu, apt install python3-venv"; rm -rf $(VENV); exit 1; } >&2

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (PyTorch is large: the first time takes minutes)"
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) -e '.[test]'
	@touch $@
