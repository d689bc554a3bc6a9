# Commands of adtower. `make help` lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SEED ?= 0
DATA ?= ../shared/data

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format bench reproduce-homedepot reproduce-grocery reproduce-fashion reproduce-clara2 clean

help: ## Print this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml setup.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH_INDEX="$(TORCH_INDEX)" ACCELERATOR="$(ACCELERATOR)" bash setup.sh
	@touch $(READY)

setup: $(READY) ## Install the locked requirements into .venv (TORCH_INDEX=, ACCELERATOR=cuda)

demo: $(READY) ## The whole line on a generated grocery world: runs/demo/report.html
	$(BIN)/adtower demo --out runs/demo --seed $(SEED) --overwrite

test: $(READY) ## The tests, without the slow ones
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: $(READY) ## The slow tests
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m "slow"

check: $(READY) ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY) ## Let ruff format and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## Speed of each stage, as ratios to a peer in the same run
	$(BIN)/adtower bench --json runs/bench/metrics.json

reproduce-homedepot: $(READY) ## Home Depot: a judge and vectors from human labels, half an hour (DATA=folder with homedepot_relevance/)
	$(BIN)/adtower reproduce homedepot --source $(DATA) --out runs/reproduce-homedepot --overwrite

reproduce-grocery: $(READY) ## A shop's photos find their product's text, fifteen minutes (DATA=folder with grocery_store/)
	OMP_WAIT_POLICY=ACTIVE $(BIN)/adtower reproduce grocery --source $(DATA) --out runs/reproduce-grocery --seed $(SEED) --overwrite

reproduce-fashion: $(READY) ## A catalogue's pictures find their titles, fifteen minutes (DATA=folder with fashion44k/)
	$(BIN)/adtower reproduce fashion --source $(DATA) --out runs/reproduce-fashion --seed $(SEED) --overwrite

reproduce-clara2: $(READY) ## Every click model on real search clicks, two to four minutes (DATA=folder with clara2/)
	$(BIN)/adtower reproduce clara2 --source $(DATA) --out runs/reproduce-clara2 --seed $(SEED) --overwrite

clean: ## Remove runs and caches, not the environment
	rm -rf runs .pytest_cache .ruff_cache build *.egg-info
