# One door to everything: `make` lists the targets. Needs Python 3.11 or later, make and a C compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
INSTALLED := $(VENV)/.installed

.PHONY: help demo test slow lint fix viewer

help:
	@echo "make demo   solve two puzzles with threads of the embedded model"
	@echo "make test   run the tests"
	@echo "make slow   run the slow tests too"
	@echo "make lint   check style and types"
	@echo "make fix    mend what the style check can mend"
	@echo "make viewer build the page of lace view from viewer/ (needs node and npm)"

# The stamp is written last, so that an interrupted installation is done again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11; try: make PYTHON=python3.11 ..." >&2; exit 1; }
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing torch (some minutes the first time)"
	@$(PIP) install -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	@echo "installing lace and its dependencies"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/lace solve "Use 9, 14 and 6 to make 30" --threads 8
	@$(BIN)/lace solve "Compute 723 - 33 + 20 - 83 - 60 - 10 - 86 + 65 + 17 - 48 - 55 + 64 + 56 - 66 + 62 + 84 + 67" --threads 4

test: $(INSTALLED)
	@$(BIN)/python -m pytest -q

slow: $(INSTALLED)
	@$(BIN)/python -m pytest -q -m "not gpu"

lint: $(INSTALLED)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

fix: $(INSTALLED)
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

viewer:
	@cd viewer && npm ci --silent --no-audit --no-fund && npm run --silent build
