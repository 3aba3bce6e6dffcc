# `make demo` and `make test` each do all their set-up from a fresh clone: Python 3.11+, pip, git and make are enough.
# The first interpreter that really runs and is new enough (a name on the path may be a shim for one that is not there).
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
# Two workers on two cores; one thread each, so that they do not fight for the cores. A worker that has finished takes
# tests from the end of the other's list, so that both end together.
TEST_WORKERS ?= 2

# Gradio, which asks for pillow < 13, stands in an environment of its own above the main one: all else is tested with the
# newest pillow.
APP := build/app-environment
SITE := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

.PHONY: demo test test-slow test-app mutants lint docs install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	@touch $@

demo: install
	$(BIN)/python -m eval.demo --out runs/demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal

test-slow: install
	$(BIN)/python -m pytest -m slow

$(APP)/.installed: $(VENV)/.installed
	$(BIN)/python -m venv --clear $(APP)
	$(BIN)/python $(SITE) > "$$($(APP)/bin/python $(SITE))/main.pth"
	$(APP)/bin/python -m pip install --quiet --editable '.[app-test]'
	@touch $@

# The page, over HTTP and in Chromium (Debian's package chromium); without a browser those tests are skipped.
test-app: $(APP)/.installed
	OMP_NUM_THREADS=1 $(APP)/bin/python -m pytest tests/makeup_plugin/app

# Do the tests notice small errors? See docs/reliability.md; more arguments by MUTANTS='--only faceclip.losses'.
mutants: install
	nice $(BIN)/python -m benchmarks.mutants $(MUTANTS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The variable silences advice of mkdocs-material about its successor.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --config-file docs/site/mkdocs.yml

clean:
	rm -rf $(VENV) runs build *.egg-info
