# On a fresh machine with python3.11 or newer, pip and make, either target does all the set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Other kernels of the same x86 processor, a variable each for: torch's own loops, oneDNN, MKL,
# numpy's OpenBLAS, numpy's own loops. tests/whole/test_kernels.py checks that each switches something.
KERNELS := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE \
	OPENBLAS_CORETYPE=Nehalem NPY_DISABLE_CPU_FEATURES=X86_V3

# Torch keeps compiled code by what is compiled, not by the kernels that it was compiled for.
OWN_CODE := TORCHINDUCTOR_CACHE_DIR=$(CURDIR)/$(VENV)/inductor-other-kernels

.PHONY: demo test test-kernels check tables clean

demo: $(STAMP)  ## train the four losses on the embedded data set and print the table
	$(BIN)/mlbench run

test: $(STAMP)  ## run the tests, then those of numbers again under other kernels
	$(BIN)/pytest
	$(MAKE) test-kernels

test-kernels: $(STAMP)  ## run the tests of numbers under other kernels
	env $(KERNELS) $(OWN_CODE) $(BIN)/pytest -m numeric

check: $(STAMP)  ## lint, format, layers and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

tables: $(STAMP)  ## print the tables and draw the figures of results/README.md (and docs/) anew
	$(BIN)/python tools/documents.py

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("mlbench needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[pretrained,dev]'
	@touch $@

clean:  ## remove the environment and what tools left
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis
