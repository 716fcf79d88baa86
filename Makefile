# Every command of the project. `make help` lists them.
# The Python that makes .venv; without one tools/find-python looks for it. Another one later: remove .venv first.
PYTHON ?=
VENV := .venv
PY := $(VENV)/bin/python
SMOLLM3 := $(VENV)/bin/smollm3
VLLM_VENV := .venv-vllm
INSTALL := $(PY) -m pip install --quiet --constraint constraints-cuda.txt

# What a user gives is a name, a path or a list of them: nothing in it is for make to expand or for a shell to run. `value`
# is the text as it was given; looking at the variable itself would already run a $(shell ...) in it.
define NEWLINE


endef
ACTING := $$ ` " ' \ ; & | < > ( ) \#
QUOTED := $$ ` \ "
acting_in = $(strip $(foreach mark,$(2),$(if $(findstring $(mark),$(value $(1))),$(mark))) $(if $(findstring $(NEWLINE),$(value $(1))),newline))
is_given = $(filter command environment override,$(firstword $(origin $(1))))
refuse_marks = $(if $(call is_given,$(1)),$(if $(call acting_in,$(1),$(2)),$(error $(1) holds $(call acting_in,$(1),$(2)), on which a shell or make would act; it comes from the $(origin $(1)). Give names and paths without it)))
refuse_words = $(if $(call is_given,$(1)),$(if $(word 2,$(value $(1))),$(error $(1) is one name or path, without spaces; it comes from the $(origin $(1)))))
ONE_WORD := PYTHON PROFILE RECIPES RUN GPU FROM EDITION MIRROR REFERENCE REPLACE COUNT STOPS SEED SECONDS VENV VLLM_VENV HASHES
SEVERAL_WORDS := STAGE STAGES PHASE MODEL MODELS SUITE SEEDS REBUILD SET
$(foreach name,$(ONE_WORD) $(SEVERAL_WORDS),$(call refuse_marks,$(name),$(ACTING)))
$(foreach name,$(ONE_WORD),$(call refuse_words,$(name)))
$(call refuse_marks,MACHINE,$(QUOTED))

# PROFILE names a folder of recipes, RECIPES any such folder; RUN is where its results go. Like sbatch, merge and eval are for the real run unless
# told otherwise; everything else is the miniature.
# `override`, for a variable that is given but empty: $(RUN)/plan must not become /plan.
override PROFILE := $(or $(PROFILE),$(if $(filter merge% eval%,$(firstword $(MAKECMDGOALS))),smollm3-3b,tiny))
override RECIPES := $(or $(RECIPES),recipes/$(PROFILE))
override RUN := $(or $(RUN),runs/$(notdir $(RECIPES:/=)))
export RECIPES RUN
STAGE ?= 1 2 3
PHASE ?= midtrain sft apo
GPU ?= $(if $(filter tiny,$(PROFILE)),cpu,h100)
MODEL ?= $(RUN)/hf/merged
COMMA := ,
SPACE := $() $()
SEEDS_OPTION = $(if $(SEEDS),--seeds $(subst $(SPACE),$(COMMA),$(strip $(SEEDS))))

.DEFAULT_GOAL := help
.PHONY: help setup setup-vllm setup-flash-attn doctor demo data audit pretrain export summary posttrain-data posttrain capabilities chat merge merge-sweep
.PHONY: plan eval-data eval-prefetch eval eval-curve eval-report report ablations cluster-run cluster-status check
.PHONY: bench-data bench-step bench-loss bench-gpu bench-guard bench-checkpoints bench-checkpoints-at-scale bench-journal bench-plan bench-merge chaos layouts figures record predictions test test-storage test-slurm test-compat lint format

help: ## List the commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: PROFILE=$(PROFILE) (smollm3-3b for merge* and eval*) RUN=$(RUN) STAGE=\"$(STAGE)\""

# A virtual environment in the folder $(1), unless a usable one is there.
define make_environment
@tools/find-python pip $(1)/bin/python >/dev/null 2>&1 || \
  { python=$$(tools/find-python ensurepip $(PYTHON)) && $$python -m venv --clear $(1); }
endef

setup: $(VENV)/.installed ## Install everything into .venv with pip, at the exact versions of constraints-cuda.txt

# HASHES=1 checks every file but torch's against locks/, HASHES=cuda those of torch and its CUDA libraries too. pip is told
# not to look for dependencies: the locks have them all.
HASHED := $(PY) -m pip install --quiet --no-deps --require-hashes --no-build-isolation
$(VENV)/.installed: pyproject.toml constraints.txt constraints-cuda.txt
	$(call make_environment,$(VENV))
ifdef HASHES
	$(HASHED) --requirement locks/build.txt
	$(HASHED) --requirement locks/base.txt
	$(if $(filter cuda,$(HASHES)),$(HASHED) --requirement locks/cuda.txt,$(INSTALL) torch)
	$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
else
	$(INSTALL) --editable '.[dev]'
endif
	@touch $@

.PHONY: lock sbom vulnerabilities dist
dist: sbom ## Write the wheel, the source archive and their bill of materials to dist/
	$(PY) -c "from setuptools import build_meta; build_meta.build_sdist('dist'), build_meta.build_wheel('dist')"

lock: setup ## Write locks/, the hashes of every pinned version, as the package index gives them (minutes)
	$(PY) -m tools.hash_lock

sbom: setup ## Write dist/sbom.cdx.json: what an installation consists of, as CycloneDX
	$(PY) -m tools.sbom dist/sbom.cdx.json

vulnerabilities: ## Compare the locks with what is known of vulnerabilities (asks the network)
	$(call make_environment,.venv-audit)
	.venv-audit/bin/python -m pip install --quiet pip-audit==2.10.1
	.venv-audit/bin/pip-audit --disable-pip --require-hashes $(patsubst %,--requirement locks/%.txt,build base cuda) \
	  $$(sed -n 's/^\([A-Z]*-[0-9A-Za-z-]*\) .*/--ignore-vuln \1/p' locks/accepted_vulnerabilities)

setup-flash-attn: setup ## Build flash-attn into .venv, for post-training on GPUs (docs/install.md)
	$(INSTALL) ninja wheel
	$(INSTALL) --no-build-isolation --editable '.[dev,flash-attn]'

setup-vllm: $(VLLM_VENV)/.installed ## Install vLLM and the evaluation into .venv-vllm, as constraints-vllm.txt says

# Without its dependencies: they are .venv's, and vLLM excludes some of them.
$(VLLM_VENV)/.installed: pyproject.toml constraints-vllm.txt
	$(call make_environment,$(VLLM_VENV))
	$(VLLM_VENV)/bin/python -m pip install --quiet --requirement constraints-vllm.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@

doctor: ## What this machine has of what the project uses, and how to get what is missing
	@test -x $(VENV)/bin/smollm3 || { echo "error: there is no $(VENV)/bin/smollm3: run 'make setup'"; exit 1; }
	@$(VENV)/bin/smollm3 doctor

demo: setup ## The whole chain in miniature, from text to the report; STAGES="sft merge" for a part of it
	@$(SMOLLM3) demo $(STAGES)

.PHONY: demo-seeds
demo-seeds: setup ## The whole chain under SEEDS (default: 42 43 44), and its effects with intervals (about 40 minutes)
	@$(SMOLLM3) demo-seeds $(SEEDS_OPTION)

data: setup ## Prepare the profile's data: tokenizer, shards, manifests (REBUILD="source ..." or all may be replaced)
	$(SMOLLM3) data $(REBUILD:%=--rebuild %)

audit: setup ## The mixture as a tree, with decoded samples and a lint of the windows
	$(SMOLLM3) audit

pretrain: setup ## Pretrain the stages in STAGE (1 2 3, long context: 32k 64k), each from its predecessor's last checkpoint
	@set -e; for stage in $(STAGE); do \
	  echo "== pretrain stage $$stage"; \
	  case $$stage in *k) recipe=long_context_$$stage ;; *) recipe=pretrain_stage$$stage ;; esac; \
	  $(SMOLLM3) train $$recipe; \
	done

export: setup ## Write the model of run FROM (default: the last pretraining stage) as the folder MODEL (REPLACE=1 overwrites)
	$(SMOLLM3) export $(if $(FROM),$(REPLACE:%=--replace),--replace) $(or $(FROM),$(RUN)/stage3) $(if $(FROM),$(MODEL),$(RUN)/hf/stage3)

summary: setup ## Losses, held-out bits per byte against baselines, and a sample of text
	$(SMOLLM3) summary

posttrain-data: setup ## Generate the tiny profile's conversations, pairs and held-out prompts (REPLACE=1 overwrites)
	$(SMOLLM3) posttrain-data $(REPLACE:%=--replace)

posttrain: setup ## Post-train the phases in PHASE: midtrain, sft, apo (every apo*.yaml, for the soup)
	@set -e; for phase in $(PHASE); do \
	  echo "== $$phase"; \
	  $(SMOLLM3) posttrain $(RECIPES)/$$phase*.yaml; \
	done

.PHONY: posttrain-seeds
posttrain-seeds: setup ## Post-training from start to finish under SEEDS (default: 42 43 44), in one table
	$(SMOLLM3) posttrain-seeds $(SEEDS_OPTION)

capabilities: setup ## Mode following and the taught tasks of MODELS="folder ..." on held-out prompts
	$(SMOLLM3) capabilities $(MODELS) $(SEEDS:%=--seeds %)

chat: setup ## Talk to MODEL in the terminal
	$(SMOLLM3) chat $(MODEL)

merge: setup ## Average the APO checkpoints, then 0.9 of the soup + 0.1 of the mid-training model
	$(SMOLLM3) merge

merge-sweep: setup ## Evaluate mixing weights from 0 to 1 and draw the curve
	$(SMOLLM3) merge-sweep

eval-data: setup ## Write the evaluation sets of the recipe (EDITION=full needs the hub; REPLACE=1 overwrites real sets)
	$(SMOLLM3) eval-data $(EDITION:%=--edition %) $(REPLACE:%=--replace)

eval-prefetch: setup ## Fetch the real sets (of SUITE, default all) from the hub or MIRROR, and pack them into one file
	$(SMOLLM3) eval-data --edition full $(SUITE:%=--suite %) $(MIRROR:%=--mirror %) \
	  $(REPLACE:%=--replace) --pack $(RUN)/eval_data$(subst $(SPACE),,$(SUITE:%=_%)).tar

eval: setup ## Evaluate the folders in MODEL on the recipe's suites (SUITE=name for one; SET="section.key=value ...")
	$(SMOLLM3) eval $(SET) $(MODEL:%=--model %) $(SUITE:%=--suite %)

eval-curve: setup ## SUITE over all checkpoints of the pretraining runs, against tokens (REFERENCE=curve.json is a gate)
	$(SMOLLM3) eval-curve $(SUITE:%=--suite %) $(REFERENCE:%=--reference %)

eval-report: setup ## Table of all evaluations so far
	$(SMOLLM3) eval-report

report: setup ## One page about the profile's whole chain: RUN/report/index.html
	$(SMOLLM3) report

ablations: setup ## Train the announcement's four ablations and their base under SEEDS, and compare
	$(SMOLLM3) ablations $(SEEDS_OPTION)

cluster-run: setup ## Submit the profile's whole chain to Slurm as one dependency graph; what is done stays done
	$(SMOLLM3) cluster-run

cluster-status: setup ## Where the profile's chain is: stage, step, tokens/s, ETA, attempts
	$(SMOLLM3) cluster-status

plan: setup ## Predict memory, speed, days and storage of the stages in STAGE on GPU (h100, ...; tiny: this machine)
	$(SMOLLM3) plan $(patsubst %,pretrain_stage%,$(filter-out %k,$(STAGE))) $(patsubst %,long_context_%,$(filter %k,$(STAGE))) \
	  --gpu $(GPU) --out $(RUN)/plan

check: setup ## Validate all recipes of the profile
	$(SMOLLM3) check

bench-data: setup ## The mixture loader beside other loaders, and tokenisation beside the tokenizers library
	$(PY) bench/data.py
	$(PY) -m datapipes.bench_tokenizer $(RUN)/tokenizer/tokenizer.json

bench-plan: setup ## The planner on this machine: peak memory and step time of recipes, predicted and measured
	$(PY) bench/plan.py $(RECIPES)/pretrain_stage1.yaml $(RECIPES)/pretrain_stage3.yaml $(wildcard $(RECIPES)/long_*.yaml)

bench-context: setup ## Context parallelism: how evenly attention is shared, and peak memory of a step over 65,536 tokens
	$(PY) bench/context_parallel.py

bench-long-context: setup ## Lengthen a tiny model as SmolLM3 was and ask for facts at every length (SEEDS=3; half an hour)
	$(PY) bench/long_context.py --seeds $(or $(SEEDS),3)

bench-merge: setup ## Merge 3B-shaped checkpoints: time, peak memory, and the check against float64 (25 GB of disk)
	$(PY) bench/merge.py

chaos: setup ## Kill COUNT training runs at random moments (SEED), stop STOPS others by signals, and compare the ends
	$(PY) -m tests.chaos --count $(or $(COUNT),30) --stops $(or $(STOPS),20) --seed $(or $(SEED),1)

bench-checkpoints: setup ## What saving every 20 steps costs in time and memory
	$(PY) bench/checkpoints.py

bench-checkpoints-at-scale: setup ## A start and a save at 384 ranks behind 1,725 checkpoints (needs strace; minutes)
	$(PY) -m bench.checkpoints_at_scale

layouts: setup ## Load the checkpoints of 16 layouts into all 16, and compare state and losses
	$(PY) -m tests.layouts

bench-journal: setup ## Resuming behind 3.45 million rows of metrics: time and peak memory, into runs/bench-journal
	$(PY) bench/journal.py

bench-step: setup ## Our training step beside transformers' model on the same batches (minutes)
	$(PY) bench/step.py

bench-loss: setup ## Gradients and losses of confident tokens in bfloat16, beside float64 and float32 (minutes)
	$(PY) bench/loss.py

bench-gpu: setup ## Everything that a GPU is asked for, into runs/bench-gpu/speed.md; goes on where it was interrupted
	$(PY) bench/gpu.py

bench-guard: setup ## Nightly: ratios of the step benchmark against floors, instructions of the loader's hot path
	$(PY) bench/guard.py

figures: setup ## Write the measured figures and pictures of README and docs from the files in results/
	$(PY) -m tools.figures

record: setup ## Take the finished demo in RUN, and its seeds in RUN-seeds, over into results/ (MACHINE="AMD EPYC, 2 cores")
	$(PY) -m tools.record $(RUN) $(if $(MACHINE),--machine "$(MACHINE)")

predictions: setup ## What the planner predicts for machines that README names, into results/predictions.json
	$(PY) -m tools.predictions

test: setup lint ## Lint, type check and run all tests
	$(PY) -m pytest --numprocesses 2 --dist loadfile

test-storage: setup ## Sources, shards and checkpoints in an S3 service on this machine (installs moto)
	$(INSTALL) --editable '.[dev,storage]'
	$(PY) -m pytest tests/datapipes/test_s3.py tests/nanotron_ext/test_s3_checkpoints.py

test-slurm: setup ## The longer tests: dying nodes and the whole chain on a local Slurm, sharded post-training, slow disks
	$(PY) -m pytest --numprocesses 2 --dist loadfile -m long tests/slurm tests/chain tests/posttrain tests/nanotron_ext

.PHONY: fuzz
fuzz: setup ## Random recipes, manifests, configurations, rows and replies, SECONDS (60) for each door
	FUZZ_SECONDS=$(or $(SECONDS),60) $(PY) -m pytest tests/test_fuzzing.py -s

test-compat: setup ## Beside other releases and foreign things: transformers 4.53 and 4.57, real weights, other Pythons' locks
	$(PY) -m pytest -m compat tests

lint: setup ## ruff (lint and format), mypy and the rules of who may import whom
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

format: setup ## Let ruff rewrite the files
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
