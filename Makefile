# make demo   set up, simulate rooms, train the RGB teacher on them, score it, and say where the pictures are
# make test   set up, then the whole test suite
# make help   all targets

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
ROOMS := data/DemoRooms
EPOCHS ?= 30

.DEFAULT_GOAL := help
.PHONY: help install demo test slow check lint clean-demo

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 20

install: $(VENV)/.installed  ## make .venv and install all that runs and tests

$(VENV)/.installed: requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is older than Python 3.10: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt --editable .
	@touch $@

demo: install  ## 800 simulated rooms, a small RGB teacher, its pictures and its table; EPOCHS=30
	$(RUN) simulate_rooms.py --output $(ROOMS) --train 600 --val 80 --test 120 --image_size 64
	$(RUN) train_rgb_depth.py --dataset simulated --dataset_dir $(ROOMS) --image_size 64 --base_channels 16 \
	  --batch_size 32 --learning_rate 0.002 --nb_epochs $(EPOCHS) --num_workers 2 --save_frequency 5 --augment \
	  --experiment_name demo --overwrite
	$(RUN) evaluate.py --checkpoint checkpoints/demo/best_model.pth --split test --num_workers 2 --per_location \
	  --json results/demo/test.json --cases results/demo/test_cases.png
	@echo
	@echo "Pictures (RGB, truth, prediction, error): results/demo/epoch_*.png, results/demo/test_cases.png"
	@echo "Loss and metrics by epoch:                results/demo/curves.png"

test: install  ## the whole test suite
	$(RUN) -m pytest -n 2

slow: install  ## the tests that take minutes: compiled steps
	$(RUN) -m pytest -m slow

check: lint test  ## linters, types and tests: what a change must pass

lint: install  ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean-demo:  ## remove what the demo wrote
	rm -rf $(ROOMS) checkpoints/demo results/demo logs/demo
