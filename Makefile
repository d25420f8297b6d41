# Every target sets up by itself what it needs. Use an existing environment with PYTHON=/path/to/python.
DATASET ?= microworld
RECIPE ?=
ARGS ?=
JOBS ?= auto
VOC ?= data/VOCdevkit/VOC2012
WEIGHTS ?= vit_base_patch16_clip_quickgelu_224.openai
VENV := .venv

ifdef PYTHON
RUN := $(PYTHON)
READY :=
else
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
endif

.DEFAULT_GOAL := help
.PHONY: help setup run stage1 stage2 stage3 report status gc tensorboard test lint format mutate golden drills bench ladder ablation real clean clean_env

help: ## show this list
	@echo "make TARGET [RECIPE=...] [DATASET=microworld] [ARGS='options --STEP.a.b value'] [PYTHON=python]"
	@echo "photos need pretrained weights: ARGS=--download fetches them by name; python -m dhr_lightning init prints other ways"
	@awk -F ':.*## ' '/^[a-z0-9_]+:.*## / {printf "  %-12s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv and install the package with everything

$(VENV)/.ready: pyproject.toml
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -e '.[dev,pot]'
	@echo "building pydensecrf2 (needs a C++ compiler) ..."
	@$(VENV)/bin/python -m pip install --quiet -e '.[crf]' \
		|| echo "pydensecrf2 could not be built: the dense CRF runs on the lattice of this package (same masks, one process). With a C++ compiler: 'make clean_env setup'."
	@touch $@

run: $(READY) ## a whole recipe, and its report: everything below in one
	$(RUN) -m dhr_lightning run $(RECIPE) --data $(DATASET) $(ARGS)

stage1: $(READY) ## image tags -> CAMs and first masks
	$(RUN) stages/stage1_cam.py $(RECIPE) --data $(DATASET) $(ARGS)

stage2: $(READY) ## images -> unsupervised segmentation features
	$(RUN) stages/stage2_uss.py $(RECIPE) --data $(DATASET) $(ARGS)

stage3: $(READY) ## masks and features -> DHR masks, final segmenter, report
	$(RUN) stages/stage3_dhr.py $(RECIPE) --data $(DATASET) $(ARGS)

report: $(READY) ## reports/DATASET/RECIPE/report.html and report.json
	$(RUN) -m dhr_lightning report $(RECIPE) --data $(DATASET) $(ARGS)

status: $(READY) ## every artifact of the recipes that ran: fresh, stale (why) or absent
	$(RUN) -m dhr_lightning status $(RECIPE) --data $(DATASET) $(ARGS)

gc: $(READY) ## remove what no recipe needs that ran here (asks)
	$(RUN) -m dhr_lightning gc --data $(DATASET) $(ARGS)

tensorboard: $(READY) ## scalars and panels of all runs
	$(RUN) -m tensorboard.main --logdir runs

test: $(READY) ## run the tests, in as many processes as there are cores (JOBS=0: in one)
	$(RUN) -m pytest --numprocesses $(JOBS) --maxprocesses 4 --dist loadfile $(ARGS)

lint: $(READY) ## ruff, mypy and the one-way import rule
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -c 'from importlinter.cli import lint_imports_command as run; run()'

format: $(READY) ## format and sort imports
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

mutate: $(READY) ## small faults put into a copy of the code: which does no test notice? half an hour (docs/tests.md)
	$(RUN) tools/mutate.py $(ARGS)

golden: $(READY) ## results of the quick start beside the kept ones (ARGS=--write keeps the new ones); ten minutes
	$(RUN) tools/golden.py $(ARGS)

drills: $(READY) ## faults done to a real run: kills, full disk, cut files, two processes ...; five minutes (docs/faults.md)
	$(RUN) tools/drills.py $(ARGS)

bench: $(READY) ## ratios: our operations beside pydensecrf, POT and plain loops, in one table
	$(RUN) benchmarks/ratios.py --output bench/ratios.md $(ARGS)

ladder: $(READY) ## what every step does to the masks of the built-in data, three seeds; takes long
	$(RUN) benchmarks/ladder.py --workspace bench $(ARGS)

ablation: $(READY) ## choices of the mask step, on the built-in data or photos (see benchmarks/ladder.py); takes long
	$(RUN) benchmarks/ladder.py --workspace bench --rows ablation --skip-segmenters $(ARGS)

real: REAL = $(or $(RECIPE),frozen)
real: $(READY) ## a recipe (default: frozen) on PASCAL VOC photos: VOC=FOLDER WEIGHTS=FILE|NAME
	$(RUN) -m dhr_lightning run $(REAL) --data voc --root $(VOC) --weights $(WEIGHTS) $(ARGS)
	$(RUN) benchmarks/real_table.py --data $(VOC) --report reports/voc/$(REAL)/report.json --output reports/voc/$(REAL)/table.md

clean: ## remove artifacts, runs, reports and caches (data stays)
	rm -rf artifacts runs reports bench mutants .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

clean_env: ## remove .venv
	rm -rf $(VENV)
