# On a fresh machine with Python 3.11 or newer, pip and make, each target does all the set-up.
# CPU=1 installs PyTorch's CPU wheels (about 1 GB instead of 5.5 GB):  make demo CPU=1
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CPU_INDEX ?= https://download.pytorch.org/whl/cpu

# Other kernels of the same x86 processor, a variable each for: torch's own loops, oneDNN, MKL,
# numpy's OpenBLAS, numpy's own loops. tests/whole/test_kernels.py checks that each switches something.
KERNELS := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE \
	OPENBLAS_CORETYPE=Nehalem NPY_DISABLE_CPU_FEATURES=X86_V3

# Torch keeps compiled code by what is compiled, not by the kernels that it was compiled for.
OWN_CODE := TORCHINDUCTOR_CACHE_DIR=$(CURDIR)/$(VENV)/inductor-other-kernels

# Tests take one thread each, so that a process for each core has a core.
PARALLEL := --numprocesses auto --dist worksteal

.PHONY: demo test test-kernels check docs tables dist clean

demo: $(STAMP)  ## train the four losses on the embedded data set and print the table
	$(BIN)/mlbench run

test: $(STAMP)  ## run the tests, then those of numbers again under other kernels
	$(BIN)/pytest $(PARALLEL)
	$(MAKE) test-kernels

test-kernels: $(STAMP)  ## run the tests of numbers under other kernels, which x86 processors have
	case $$(uname -m) in x86_64|amd64) env $(KERNELS) $(OWN_CODE) $(BIN)/pytest $(PARALLEL) -m numeric;; esac

check: $(STAMP)  ## lint, format, layers, types and workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet .github/workflows

docs: $(STAMP)  ## build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

tables: $(STAMP)  ## print the tables and draw the figures of results/ and docs/ anew
	$(BIN)/python tools/documents.py

dist: $(STAMP)  ## build the wheel and the source archive into dist/
	$(BIN)/python -m hatchling build -d dist

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("mlbench needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
ifdef CPU
	@$(PIP) --no-deps --retries 1 --timeout 20 --index-url $(CPU_INDEX) torch torchvision || { \
	  echo "make: cannot install PyTorch's CPU wheels from $(CPU_INDEX); set CPU_INDEX=URL to a mirror, or leave CPU=1 out for the CUDA build (5.5 GB), which also runs on a CPU" >&2; exit 1; }
endif
	$(PIP) --editable '.[pretrained,dev]'
	@touch $@

clean:  ## remove the environment and what tools left
	rm -rf $(VENV) dist build site .pytest_cache .ruff_cache .hypothesis
