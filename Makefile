# Every target sets up by itself what it needs. Use an existing environment with PYTHON=/path/to/python.
DATASET ?= microworld
ARGS ?=
VENV := .venv

ifdef PYTHON
RUN := $(PYTHON)
READY :=
else
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
endif

.DEFAULT_GOAL := help
.PHONY: help setup stage1 stage2 stage3 report status tensorboard test lint format bench clean clean_env

help: ## show this list
	@echo "make TARGET [DATASET=microworld] [ARGS='options -- overrides'] [PYTHON=python]"
	@awk -F ':.*## ' '/^[a-z0-9_]+:.*## / {printf "  %-12s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv and install the package with everything

$(VENV)/.ready: pyproject.toml
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -e '.[dev]'
	@echo "building pydensecrf2 (needs a C++ compiler) ..."
	@$(VENV)/bin/python -m pip install --quiet -e '.[crf]' \
		|| echo "pydensecrf2 could not be built: dense CRF is off, PAMR refines instead (worse masks). Install a C++ compiler and run 'make clean_env setup'."
	@touch $@

stage1: $(READY) ## image tags -> CAMs and base masks
	$(RUN) stages/stage1_cam.py --dataset $(DATASET) $(ARGS)

stage2: $(READY) ## images -> unsupervised segmentation features
	$(RUN) stages/stage2_uss.py --dataset $(DATASET) $(ARGS)

stage3: $(READY) ## masks and features -> DHR masks, final segmenter, report
	$(RUN) stages/stage3_dhr.py --dataset $(DATASET) $(ARGS)

report: $(READY) ## reports/DATASET/report.html and report.json
	$(RUN) -m dhr_lightning report --dataset $(DATASET) $(ARGS)

status: $(READY) ## every artifact: fresh, stale (why) or absent
	$(RUN) -m dhr_lightning status --dataset $(DATASET) $(ARGS)

tensorboard: $(READY) ## scalars and panels of all runs
	$(RUN) -m tensorboard.main --logdir runs

test: $(READY) ## run the tests
	$(RUN) -m pytest $(ARGS)

lint: $(READY) ## ruff, mypy and the one-way import rule
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -c 'from importlinter.cli import lint_imports_command as run; run()'

format: $(READY) ## format and sort imports
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: $(READY) ## ladder of mask steps on the built-in data, three seeds; takes long
	$(RUN) benchmarks/ladder.py --workspace bench $(ARGS)

clean: ## remove artifacts, runs, reports and caches (data stays)
	rm -rf artifacts runs reports bench .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

clean_env: ## remove .venv
	rm -rf $(VENV)
