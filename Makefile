# Everything runs in one Python environment: .venv here, or the one that VENV= names.
# It is made where it does not exist; one that somebody else made is only added to.

SHELL := /bin/sh
VENV ?= .venv
PYTHON ?= python3
# auto | registry | official: see tools/install_detectron2.py
DETECTRON2 ?= auto
# Other versions than those of constraints.txt, NAME==VERSION; a NAME alone: any that fits.
PINS ?=
# Passed on to pytest, e.g. make test ARGS="-k codec"
ARGS ?=
# Processes of the tests, each with OMP_NUM_THREADS threads.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

PY = $(VENV)/bin/python

# One thread a process: oversubscribed threads make small inferences many times slower. The demo
# trains one process alone, on all cores.
DEMO_THREADS ?= $(shell nproc 2>/dev/null || echo 2)
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS
# Long trainings and what they draw; repeating the command goes on with them.
MPN_RUNS ?= $(HOME)/.cache/mpn_d2/runs
# drawn-v1 | drawn-coco-v1
DATASET ?= drawn-v1
ifneq ($(wildcard ../shared/data/.),)
MPN_DATA ?= $(CURDIR)/../shared/data
export MPN_DATA
endif

# Only for our own commands, never for pip: this clone's mpn_d2 comes first, whatever is installed.
RUN = PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" "$(PY)"

.DEFAULT_GOAL := help
.PHONY: help setup demo synthetic ablation regression assembly inference performance unified limits docs faults fuzz \
	test lint types versions tried clean

help:
	@echo 'make setup      the environment ($(VENV)): torch, Detectron2, mpn_d2; repeating is quick'
	@echo 'make demo       train on the bundled photographs, evaluate, draw (output/demo)'
	@echo 'make synthetic  train on drawn people from scratch, figures and pictures into docs/ (an hour)'
	@echo 'make ablation   variants of the network on drawn people, one short schedule'
	@echo 'make regression pose regression on drawn people, from the trunk that make synthetic left'
	@echo 'make assembly   every assembler trained from annotations, figures into docs/ (hours; goes on)'
	@echo 'make inference  what flip, scales, crops, ensemble ... are worth, figures into docs/ (hours)'
	@echo 'make performance  speed against Keypoint R-CNN, AP of every SPEED.MODE, into docs/ (hours)'
	@echo 'make unified    the recurrent decoder on drawn crowds, figures into docs/ (hours; ROWS=1: rows)'
	@echo 'make docs       the documents as a site, output/site/index.html'
	@echo 'make faults     commands are killed, lose disk, data or workers, and are repeated (an hour)'
	@echo 'make fuzz       1,000 broken or hostile inputs of each kind (ten minutes)'
	@echo 'make test       all tests, on CPU (ARGS="..." goes to pytest)'
	@echo 'make lint       ruff: format and rules'
	@echo 'make types      mypy over the package'
	@echo 'make limits     memory of the largest inputs, figures into docs/limits.md (minutes)'
	@echo 'make versions   a quick part of the tests with other versions: TORCH=2.13.0 PYTHON=python3.12'
	@echo 'make clean      remove output, caches and build folders, not the environment'
	@echo
	@echo 'VENV=path        another environment (made where missing, else only added to)'
	@echo 'PYTHON=command   the Python 3.11 to 3.13 that makes it'
	@echo 'DETECTRON2=auto|registry|official'

# An environment that exists is completed by its own Python; else the first that fits makes it.
setup:
	@if [ -x "$(PY)" ]; then python="$(PY)"; else \
	  python=; \
	  for candidate in "$(PYTHON)" python3.13 python3.12 python3.11; do \
	    if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	        2>/dev/null; then python="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    found=`"$(PYTHON)" --version 2>&1` || found='nothing that runs'; \
	    echo "setup: needs Python 3.11 to 3.13; $(PYTHON) is $$found." \
	      "Install one, or name it: make setup PYTHON=/path/to/python3.12" >&2; exit 1; \
	  fi; \
	fi; \
	"$$python" tools/setup_environment.py "$(VENV)" --detectron2 "$(DETECTRON2)" \
	  $(if $(PINS),--pins $(PINS))

demo: setup
	OMP_NUM_THREADS=$(DEMO_THREADS) $(RUN) tools/make_demo.py --output output/demo

# Layouts of real people for drawn-coco-v1; without them it uses the few that are bundled.
LAYOUTS = $(if $(MPN_DATA),--layouts "$(MPN_DATA)/coco_poses_full")
SYNTHETIC = OMP_NUM_THREADS=$(DEMO_THREADS) $(RUN) tools/train_synthetic.py --runs "$(MPN_RUNS)"

synthetic: setup
	$(SYNTHETIC) --dataset $(DATASET) $(if $(findstring coco,$(DATASET)),$(LAYOUTS))

ablation: setup
	$(SYNTHETIC) --ablation

# ROWS=all, or ROWS="baseline psm", trains rows of its paper's tables on a short schedule instead.
regression: setup
	OMP_NUM_THREADS=$(DEMO_THREADS) $(RUN) tools/train_regression.py --runs "$(MPN_RUNS)" \
	  $(if $(ROWS),--rows $(filter-out all,$(ROWS)))

# ROWS="Assembler_poses max_poses" trains some of them; they need the annotations of MPN_DATA.
# The allocator keeps the PRN's gradients (281 MB) between steps: half the time on a CPU.
assembly: setup
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 THP_MEM_ALLOC_ENABLE=1 \
	  OMP_NUM_THREADS=$(DEMO_THREADS) DETECTRON2_DATASETS="$(MPN_DATA)" $(RUN) \
	  tools/train_assembly.py --runs "$(MPN_RUNS)" $(if $(ROWS),--only $(ROWS))

# IMAGES=sample for the bundled photographs; ROWS="single flip" for some rows.
IMAGES ?= drawn
inference: setup
	OMP_NUM_THREADS=$(DEMO_THREADS) $(RUN) tools/inference_table.py --images $(IMAGES) \
	  --runs "$(MPN_RUNS)" $(if $(ROWS),--rows $(ROWS))

# ONLY=speed (minutes, on a quiet machine) or ONLY=accuracy (trains two networks first).
performance: setup
	OMP_NUM_THREADS=$(DEMO_THREADS) $(RUN) tools/performance.py --runs "$(MPN_RUNS)" \
	  $(if $(ONLY),--only $(ONLY))

# After make synthetic, whose network is the base. ROWS=1 for the table of switches.
unified: setup
	OMP_NUM_THREADS=$(DEMO_THREADS) $(RUN) tools/train_unified.py --runs "$(MPN_RUNS)" \
	  $(if $(ROWS),--rows)

# Without network; a warning is an error.
docs: setup
	$(RUN) -m mkdocs build --strict
	@echo 'output/site/index.html'

# N faults of each kind for each command; make test: a command's first one or two.
FAULTS ?= 8
faults: setup
	MPN_FAULTS=$(FAULTS) $(RUN) -W ignore -m pytest -q tests/faults $(ARGS)

# 1,000 mutations a kind of annotations, results, images, configs and checkpoints; make test: 50.
fuzz: setup
	MPN_FUZZ=1000 $(RUN) -W ignore -m pytest -q tests/fuzz $(ARGS)

test: setup
	$(RUN) -m pytest -q -rs -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

types: setup
	$(RUN) -m mypy

limits: setup
	$(RUN) tools/limits.py

# In an environment of its own (GB to download), kept in MPN_RUNS; the result goes into
# docs/versions.md. Without TORCH the pinned one, with another PYTHON.
TRIED = $(MPN_RUNS)/versions/$(notdir $(PYTHON))$(if $(TORCH),-torch-$(TORCH))
versions:
	$(MAKE) setup VENV="$(TRIED)" PINS="$(if $(TORCH),torch==$(TORCH) torchvision)"
	$(MAKE) tried VENV="$(TRIED)"

tried:
	$(RUN) tools/try_versions.py

clean:
	rm -rf output build dist mpn_d2.egg-info .pytest_cache .ruff_cache .mypy_cache
	find mpn_d2 tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
