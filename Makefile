# One command each: `make run` runs the pipeline, `make test` runs every check. The environment is made on first use.

PYTHON ?= $(shell for python in python3.11 python3.12 python3 python; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: run test benchmark nightly nights-demo diff rollback pin prune zoo ui clean
.DEFAULT_GOAL := run

run: $(INSTALLED)  ## bring every stage up to date and show the results; ARGS go to `dvc repro`
	@$(BIN)/python -m flows.pipeline $(ARGS)

test: $(INSTALLED)  ## every check, the fastest first
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

benchmark: $(INSTALLED)  ## MoR against other methods, five seeds; ARGS=--quick for one
	$(BIN)/python -m flows.benchmark $(ARGS)

nightly: $(INSTALLED)  ## Prefect server, MLflow's UI, a worker and the schedule of params.yaml, until Ctrl-C
	@trap : INT TERM; $(BIN)/python -m flows.schedule

nights-demo: $(INSTALLED)  ## simulated nights, and how each ended; ARGS="--kills 20" kills them at random moments
	@$(BIN)/python -m flows.nights_demo $(ARGS)

diff: $(INSTALLED)  ## what differs between two runs or nights: A=<run> B=<run>, or the last two nights
	@$(BIN)/python -m flows.diff $(A) $(B)

rollback: $(INSTALLED)  ## the champion before serves again
	@$(BIN)/python -m flows.rollback

pin: $(INSTALLED)  ## the champion, or VERSION=<number or night>, is what nights together may lose little against
	@$(BIN)/python -m flows.pin $(VERSION)

prune: $(INSTALLED)  ## what neither champions nor the last nights need; ARGS=--yes deletes it
	@$(BIN)/python -m flows.prune $(ARGS)

zoo: $(INSTALLED)  ## train the tiny models again, whose weights are in git
	@trap : INT TERM; sed -i.frozen 's/^    frozen: true/    frozen: false/' dvc.yaml; \
		$(BIN)/dvc repro zoo; code=$$?; mv dvc.yaml.frozen dvc.yaml; exit $$code  # `dvc freeze` would drop the layout

ui: $(INSTALLED)  ## the runs, in a browser; it asks for the login of .prefect/login
	@trap : INT TERM; $(BIN)/python -m flows.ui $(ARGS)

clean:  ## remove what runs have made, the servers' login too, but neither your data in data/ nor the environment
	rm -rf models/rewards models/router models/policy reports .checkpoints .prefect mlruns mlflow.db dvc_plots
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(INSTALLED): requirements.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed and was not found; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
		|| { echo "$(PYTHON) is not Python 3.11 or 3.12: $$($(PYTHON) --version 2>&1)" >&2; exit 1; }
	@echo "Installing requirements.lock into .venv with $(PYTHON): a few minutes, once"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@
