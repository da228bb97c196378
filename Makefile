# `make demo` and `make test` do everything on a fresh machine with Python 3.11, git and make.
# They install what is tested (constraints.txt) into .venv; pip's own settings (PIP_INDEX_URL and so on) apply.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
# The first Python of 3.11 or later; name another with `make PYTHON=python3.12 test`.
PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# One thread a process: several test workers, and results that do not depend on the number of cores.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

.PHONY: help demo test test-slow test-lora chaos fuzz load audit site lint format clean weights
.DEFAULT_GOAL := help

help:
	@echo "make demo       train both stages on the toy world, then see runs/demo/index.html (15 minutes, 2 cores)"
	@echo "make test       the quick tests         make test-slow  the others"
	@echo "make lint       style, types, imports   make format     mend the style"
	@echo "make fuzz       every parser for MINUTES=30 each, with atheris"
	@echo "make chaos      kill trainings and encodings KILLS=200 times each, and compare what they end with"
	@echo "make load       50 users of the page at once for MINUTES=60"
	@echo "make site       the documents as a site, in site/"
	@echo "make clean      remove the virtual environment"

demo: weights
	$(BIN)/vqvdm demo

test: weights
	$(TEST) -m "not slow"

test-slow: weights
	$(TEST) -m slow

# Beside the environment, not in it: with transformers installed, which peft wants, all that imports diffusers starts two
# seconds later.
test-lora: $(STAMP)
	test -d .venv-lora || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv-lora \
		peft==0.21.2 transformers==5.24.0 tokenizers==0.23.3
	PYTHONPATH=.venv-lora OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_train_lora.py

# By hand, for hours: what atheris finds is kept in runs/fuzz/. The script says how to install it.
MINUTES ?= 30
fuzz: $(STAMP)
	$(BIN)/python scripts/fuzz.py all --minutes $(MINUTES)

KILLS ?= 200
chaos: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/chaos.py --kills $(KILLS)

# Fifty users of the page at once: nothing is mixed up, and nothing stays behind.
load: MINUTES = 60
load: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/load.py --minutes $(MINUTES)

# Known vulnerabilities of the versions that are tested, as far as PyPI can be reached.
audit:
	test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && \
		.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1; }
	grep -v '^#' constraints.txt | sed 's/+cpu//' >.venv-audit/versions.txt
	.venv-audit/bin/pip-audit --requirement .venv-audit/versions.txt --no-deps --disable-pip --progress-spinner off

# In an environment of its own: the site is made from the sources' text, and its tools ask for other versions than ours.
site:
	test -x .venv-site/bin/python || $(PYTHON) -m venv .venv-site
	.venv-site/bin/python -m pip install --quiet --disable-pip-version-check zensical==0.0.73 mkdocstrings-python==2.0.11
	.venv-site/bin/zensical build --clean --strict

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-site .venv-lora .venv-audit

# torch by itself first: where pip is pointed at torch's CPU builds, nothing later swaps it for another.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or later is needed (make PYTHON=...)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

# The networks that measure (110 MB, once for all, in the user's cache). Without them what needs them is skipped.
weights: $(STAMP)
	@$(BIN)/vqvdm weights i3d --missing && $(BIN)/vqvdm weights lpips --missing \
		|| echo "going on without the weights of I3D and LPIPS: tests that need them are skipped" >&2
