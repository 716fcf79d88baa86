# Every command of the project. `make help` lists them.
PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python

# PROFILE names a folder of recipes; RUN is where its results go.
PROFILE ?= tiny
export RUN ?= runs/$(PROFILE)
STAGE ?= 1 2 3
RECIPES := recipes/$(PROFILE)

.DEFAULT_GOAL := help
.PHONY: help setup demo data pretrain export summary test lint format

help: ## List the commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: PROFILE=$(PROFILE) RUN=$(RUN) STAGE=\"$(STAGE)\""

setup: $(VENV)/.installed ## Install everything into .venv with pip, at the exact versions of constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: ## Text to a trained, exported, talking miniature on this machine (see README for what it prints)
	@$(MAKE) --no-print-directory PROFILE=tiny data pretrain export summary

data: setup ## Prepare the profile's data: tokenizer, shards, manifests
	$(PY) -m datapipes.prepare $(RECIPES)/pretrain.yaml

pretrain: setup ## Pretrain the stages in STAGE, each from its predecessor's last checkpoint
	@set -e; for stage in $(STAGE); do \
	  echo "== pretrain stage $$stage"; \
	  $(PY) -m nanotron_ext.launch $(RECIPES)/pretrain_stage$$stage.yaml; \
	done

export: setup ## Write the last stage's model as a transformers folder
	$(PY) -m nanotron_ext.export --replace $(RUN)/stage3 $(RUN)/hf/stage3

summary: setup ## Losses, held-out bits per byte against baselines, and a sample of text
	$(PY) -m eval.pretraining $(RUN)/stage1 $(RUN)/stage2 $(RUN)/stage3 --model $(RUN)/hf/stage3 \
	  --out $(RUN)/eval/pretraining.json

test: setup lint ## Lint, type check and run all tests
	$(PY) -m pytest

lint: setup ## ruff (lint and format) and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup ## Let ruff rewrite the files
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
