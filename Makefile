# `make run` runs the pipeline, `make test` runs every check; the environment is made on first use. The rest is the command `mor`.

PYTHON ?= $(shell for python in python3.11 python3.12 python3 python; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed
MOR := $(BIN)/mor
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: run test benchmark nightly nights-demo diff rollback pin prune zoo ui clean
.DEFAULT_GOAL := run

run: $(MOR)  ## bring every stage up to date and show the results; ARGS go to `dvc repro`
	@$(MOR) run $(ARGS)

test: $(MOR)  ## every check, the fastest first
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

benchmark nights-demo rollback prune: $(MOR)  ## `mor --help` says what they do
	@$(MOR) $@ $(ARGS)

diff: $(MOR)  ## two runs or nights, A=<run> B=<run>
	@$(MOR) diff $(A) $(B)

pin: $(MOR)  ## the champion, or VERSION=<number or night>
	@$(MOR) pin $(VERSION)

nightly ui zoo: $(MOR)  ## until Ctrl-C, which make leaves to them
	@trap : INT TERM; $(MOR) $@ $(ARGS)

clean:  ## remove what runs have made, the servers' login too, but neither your data in data/ nor the environment
	find reports -mindepth 1 ! -name metrics.json -delete
	rm -rf models/rewards models/router models/policy .checkpoints .prefect mlruns mlflow.db dvc_plots
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(INSTALLED): requirements.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed and was not found; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
		|| { echo "$(PYTHON) is not Python 3.11 or 3.12: $$($(PYTHON) --version 2>&1)" >&2; exit 1; }
	@echo "Installing requirements.lock into .venv with $(PYTHON): a few minutes, once"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

$(MOR): Makefile $(INSTALLED)  # no installed package: the code is always that of the folder where `mor` is called
	@{ echo '#!/bin/sh'; \
		echo 'test -f params.yaml -a -f flows/cli.py || {'; \
		echo '	echo "mor: no params.yaml and flows/ here: run it in the folder of the project, such as $(CURDIR)" >&2; exit 1; }'; \
		echo 'exec "$(CURDIR)/$(BIN)/python" -m flows.cli "$$@"'; } > $@
	@chmod +x $@
