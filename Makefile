# make demo   set up, simulate rooms, train a teacher, a student alone and a taught one, compare them, name the pictures
# make test   set up, then the whole test suite
# make help   all targets

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
ROOMS := data/DemoRooms
OTHER_ROOMS := data/DemoTeacherRooms
SEED ?= 0

.DEFAULT_GOAL := help
.PHONY: help install demo test test-app slow faults benchmarks check lint clean-demo

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 20

install: $(VENV)/.installed  ## make .venv and install all that runs and tests

$(VENV)/.installed: requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is older than Python 3.10: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt --editable .
	@touch $@

# The story in small: depth is dear, so only a tenth of the robot's recordings have it; pictures and echoes are cheap. A
# teacher of pictures, trained on other rooms, fills in. Both students take equally many steps.
SMALL := --dataset simulated --image_size 64 --base_channels 16 --num_workers 2 --augment --save_frequency 10 --overwrite --seed $(SEED)
EARS := $(SMALL) --dataset_dir $(ROOMS) --label_fraction 0.1 --attention_levels 4 5 \
  --batch_size 16 --nb_epochs 16 --steps_per_epoch 37
BEST := best_model.pth

demo: install  ## an eye teaches an ear on simulated rooms, in some minutes on two cores; SEED=0
	$(RUN) simulate_rooms.py --output $(ROOMS) --train 600 --val 80 --test 120 --image_size 64
	$(RUN) simulate_rooms.py --output $(OTHER_ROOMS) --train 600 --val 80 --test 0 --image_size 64 --seed 1
	$(RUN) train_rgb_depth.py $(SMALL) --dataset_dir $(OTHER_ROOMS) --batch_size 32 --learning_rate 0.002 \
	  --nb_epochs 25 --experiment_name demo_teacher
	$(RUN) train_binaural_attention.py $(EARS) --experiment_name demo_audio
	$(RUN) train_distillation.py $(EARS) --experiment_name demo_distilled \
	  --teacher_checkpoint checkpoints/demo_teacher/$(BEST)
	$(RUN) evaluate.py --dataset simulated --dataset_dir $(ROOMS) --split test --num_workers 2 \
	  --checkpoint checkpoints/demo_teacher/$(BEST) checkpoints/demo_audio/$(BEST) checkpoints/demo_distilled/$(BEST) \
	  --json results/demo/test.json --cases results/demo/test_rooms.png
	@echo
	@echo "The teacher's pictures (RGB, truth, prediction, error): results/demo_teacher/epoch_*.png"
	@echo "The students' (echo, truth, prediction, error):         results/demo_audio/ and results/demo_distilled/"
	@echo "The same test rooms as all three know them:             results/demo/test_rooms.png"
	@echo "Loss and metrics by epoch:                              curves.png beside each"

test: install  ## the whole test suite
	$(RUN) -m pytest -n 2

test-app: install  ## the page in a browser; needs chromium and chromedriver (Debian: chromium, chromium-driver)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-browser.txt
	$(RUN) -m pytest -m browser tests/test_app_browser.py

slow: install  ## the tests that take minutes: compiled steps
	$(RUN) -m pytest -m slow

faults: install  ## kill every script hundreds of times: nothing may be lost; the table of docs/RELIABILITY.md
	$(RUN) tests/faults/kill.py

# Where seconds count: on a machine on which nothing else runs.
MEASURED := results/benchmarks

benchmarks: install  ## measure the speed of this machine: tables, and JSON in results/benchmarks; half an hour or more
	$(RUN) benchmarks/bench_training.py --model rgb_depth --base_channels 64 --image_size 128 --batch_size 4 \
	  --precision bf16 32 --json $(MEASURED)/training.json
	$(RUN) benchmarks/bench_distill_any_depth.py --json $(MEASURED)/distill_any_depth.json
	$(RUN) benchmarks/bench_inference.py --attention_levels 4 5 --base_channels 8 --audio_format interaural --compile \
	  --rounds 5 --json $(MEASURED)/inference.json
	$(RUN) benchmarks/bench_data.py --json $(MEASURED)/data.json
	$(RUN) benchmarks/bench_front_end.py --json $(MEASURED)/front_end.json
	$(RUN) benchmarks/bench_simulation.py --json $(MEASURED)/simulation.json
	$(RUN) benchmarks/bench_scaling.py --json $(MEASURED)/scaling.json

check: lint test  ## linters, types and tests: what a change must pass

lint: install  ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean-demo:  ## remove what the demo wrote
	rm -rf $(ROOMS) $(OTHER_ROOMS) results/demo $(foreach d,checkpoints results logs,$(wildcard $(d)/demo_*))
