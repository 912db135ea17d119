# The two commands of the README: `make demo` runs the main job, `make test` the whole suite. Both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# what decides who gets what: every branch of it is tested
DECIDES := asn1.py attestation.py csr.py csrattrs.py enroll.py errors.py identity/* model.py policy/* possession.py \
  refusals.py strength.py

.PHONY: help setup demo test coverage mutants bench lint types clean

help:
	@echo "make demo [KEEP=1]   provision a batch end to end; KEEP=1 leaves server and broker running"
	@echo "make test            run every test"
	@echo "make coverage        the same, and fail where branches are missed (docs/testing.md)"
	@echo "make mutants         change what decides, line by line, and see which test notices"
	@echo "make bench           server CPU of an enrolment against nginx, and where it goes (ARGS=--quick)"
	@echo "                     (the line: $(BIN)/python benchmarks/line.py [--quick])"
	@echo "make lint types      ruff; mypy --strict"

setup: .venv/ready

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Estline needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv .venv || { echo "the venv module is missing: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

demo: .venv/ready
	@$(BIN)/python demo/run.py $(if $(KEEP),--keep)

test: .venv/ready
	$(BIN)/python -m pytest -n 2 $(ARGS)

coverage: .venv/ready
	@rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run -m pytest -n 2 $(ARGS)
	@$(BIN)/coverage combine --quiet; rm -f .coverage.*  # who was killed while writing leaves a part
	@$(BIN)/coverage report --include="$$(echo $(DECIDES:%=estserver/%) | tr ' ' ,)" --fail-under=100
	@$(BIN)/coverage report --fail-under=95

mutants: .venv/ready
	$(BIN)/mutmut run $(ARGS)
	@$(BIN)/mutmut results

bench: .venv/ready
	$(BIN)/python benchmarks/enrol.py $(ARGS)

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* mutants
