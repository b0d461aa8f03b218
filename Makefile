# Two commands on a fresh machine: `make train` and `make test`. Both first create the environment.

VENV := .venv
PYTHON := $(VENV)/bin/python
SET_UP := $(VENV)/.set-up

.DEFAULT_GOAL := help
.PHONY: help set-up train test test-driver test-interpreter lint format bench bench-quick gpu-report compile-matrix docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

set-up: $(SET_UP) ## create .venv and install tinynet into it, editable, with the developer tools

# The stamp file is written last, so a set-up that failed is run again.
$(SET_UP): pyproject.toml constraints/cpu.txt scripts/set_up.sh
	@sh scripts/set_up.sh $(VENV)
	@touch $@

train: $(SET_UP) ## train the image classifier on handwritten digits; ARGS='--model mlp' adds flags
	@$(PYTHON) examples/train_image_classifier.py $(ARGS)

# One process per engine: Triton decides at import whether to interpret kernels.
# Two processes share two cores better when waiting threads sleep instead of spinning.
THREADS := 2
# `make test` runs every thirteenth case of a test that has many; SHARE=1 runs all of them. A prime: every eighth case
# would always have the same of two or four values of a parameter.
SHARE := 13
PYTEST := OMP_NUM_THREADS=$(THREADS) OMP_WAIT_POLICY=passive $(PYTHON) -m pytest -n 2 --share $(SHARE)
INTERPRETED := activation glu prelu linear conv conv_grouped conv_patches winograd pool reduction loss dropout embedding optimizer optimizer_wrappers clip_grad group_norm sequential reruns wide_strides

test: test-interpreter test-driver ## run the test suite on every engine of this machine

test-driver: $(SET_UP) ## all tests on the GPU if there is one, else on the CPU engine; ARGS='-k linear' adds flags
	@$(PYTEST) $(ARGS)

test-interpreter: $(SET_UP) ## the columns' tests in Triton's interpreter; ARGS='-k linear' adds flags
	@$(PYTEST) --engine interpreter tests/engines/interpreter tests/engines/test_planted_faults.py $(INTERPRETED:%=tests/test_%.py) $(ARGS)

lint: $(SET_UP) ## ruff and pyright
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m pyright

format: $(SET_UP) ## fix and format the code with ruff
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .

bench: $(SET_UP) ## compare the kernels' speed with PyTorch's; ARGS='--only conv,linear' adds flags
	@$(PYTHON) -m benchmarks $(ARGS)

bench-quick: $(SET_UP) ## the same for a few cases of each column, in less than two minutes
	@$(PYTHON) -m benchmarks --quick $(ARGS)

# The most minutes that all parts of the report take.
MINUTES := 12

# It needs no network: where .venv is absent, it runs with the PyTorch and Triton that python3 has.
gpu-report: ## test, measure and train on a GPU; writes runs/gpu-report/report.html; MINUTES=12
	@PYTHONPATH=.:kernels $(or $(wildcard $(PYTHON)),python3) -m scripts.gpu_report --minutes $(MINUTES) $(ARGS)

compile-matrix: $(SET_UP) ## compile every kernel for every target, without a GPU
	@PYTHONPATH=tests $(PYTHON) -m compile_matrix.matrix $(ARGS)

docs: $(SET_UP) ## write the documentation as a web site to site/; open site/index.html
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

clean: ## remove the environment, builds and caches, but not runs/
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
