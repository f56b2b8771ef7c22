# On a fresh machine with python3.11 or newer, pip and make, either target does all the set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check tables clean

demo: $(STAMP)  ## train the four losses on the embedded data set and print the table
	$(BIN)/mlbench run

test: $(STAMP)  ## run the tests
	$(BIN)/pytest

check: $(STAMP)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

tables: $(STAMP)  ## print the tables and draw the figures of results/README.md (and docs/) anew
	$(BIN)/python tests/documents.py

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("mlbench needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[pretrained,dev]'
	@touch $@

clean:  ## remove the environment and what tools left
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis
